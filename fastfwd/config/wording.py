"""How a problem quotes what the operator wrote, and guesses what was meant.

Called by whatever finds something wrong with a configuration. It must never let a byte of the
file reach a terminal or a log unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastfwd.model import Origin

LONGEST_QUOTE = 60  # characters: a message stays one readable line, whatever the file holds

ALIKE = 0.6
"""How much a word is like the one that was meant, difflib's own default."""


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


def place(origin: Origin, seen_from: Origin) -> str:
    """Where another line is, seen from a line of some file."""
    return f"line {origin.line}" if origin.file == seen_from.file else str(origin)


def closest(word: str, known: Iterable[str], alike: float = ALIKE) -> str | None:
    """The one of the `known` words that `word` is a slip of, if it looks like one; upper and lower
    case do not matter. `alike` is from 0, anything, to 1, the same."""
    import difflib  # noqa: PLC0415  # only a bad file pays for it

    close = difflib.get_close_matches(word.lower()[:LONGEST_QUOTE], list(known), 1, alike)
    return close[0] if close else None


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a message: " (did you mean 'WORD'?)", or nothing."""
    close = closest(word, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def quote(text: str, longest: int = LONGEST_QUOTE) -> str:
    """`text` in quotes, control characters escaped, the end of a long one left out."""
    # A byte that is not UTF-8 was decoded to a lone surrogate U+DCxx; it stood there as \xxx.
    quoted = repr(text[:longest]).replace(r"\udc", r"\x")
    more = len(text) - longest
    return f"{quoted} (and {more} characters more)" if more > 0 else quoted
