"""How a problem quotes what the operator wrote.

Called by parse, forward, pattern and check. It must never let a byte of the
file reach a terminal or a log unescaped.
"""

from __future__ import annotations

LONGEST_QUOTE = 60  # characters: a message stays one readable line, whatever the file holds


def expected(what: str, found: str) -> str:
    """The message "expected WHAT, found 'FOUND'".

    Args:
        what: a noun phrase for what would have been right.
        found: the text as it stands in the file; see `quote`.
    """
    return f"expected {what}, found {quote(found)}"


def counted(number: int, noun: str) -> str:
    """`number` and `noun`, which takes an s in the plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quote(text: str) -> str:
    """`text` in quotes, control characters escaped, the end of a long one left out."""
    # A byte that is not UTF-8 was decoded to a lone surrogate U+DCxx; it stood there as \xxx.
    quoted = repr(text[:LONGEST_QUOTE]).replace(r"\udc", r"\x")
    more = len(text) - LONGEST_QUOTE
    return f"{quoted} (and {more} characters more)" if more > 0 else quoted
