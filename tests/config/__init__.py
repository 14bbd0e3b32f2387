"""Tests of fastfwd.config: text to Config, and what is wrong between its lines."""
