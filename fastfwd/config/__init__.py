"""Text to Config: parse, check, load, resolve, diff. Pure, but for load (files) and resolve (DNS)."""
