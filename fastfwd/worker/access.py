"""Who may connect: rinetd's allow and deny rules over a client's numeric address.

Pure; worker/accept asks once per connection. It must never resolve a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fastfwd.model import AccessRule, Outcome

MAPPED = "::ffff:"
"""How a dual-stack socket spells an IPv4 client (RFC 4291, 2.5.5.2)."""

Judge = Callable[[str], Outcome | None]
"""(numeric client address) -> None to let it in, or NOT_ALLOWED / DENIED."""


def compile_rules(scopes: Sequence[Sequence[AccessRule]]) -> Judge | None:
    """A judge over `scopes` in order (global rules, then the forward's own), or None when
    there is not a single rule.

    In each scope a client must match an allow pattern if the scope has any, and no
    deny pattern; order inside a scope does not matter. An IPv4-mapped client
    (`::ffff:192.0.2.1`) also matches by its IPv4 form, so that a deny cannot be
    escaped through a dual-stack listener.
    """
    checks: list[tuple[re.Pattern[str] | None, re.Pattern[str] | None]] = []
    for rules in scopes:
        allow = _one_pattern([rule.pattern for rule in rules if rule.allow])
        deny = _one_pattern([rule.pattern for rule in rules if not rule.allow])
        if allow is not None or deny is not None:
            checks.append((allow, deny))
    if not checks:
        return None

    def judge(client: str) -> Outcome | None:
        plain = client[len(MAPPED) :] if client.startswith(MAPPED) and "." in client else None
        for allow, deny in checks:
            if allow is not None and not _matches(allow, client, plain):
                return Outcome.NOT_ALLOWED
            if deny is not None and _matches(deny, client, plain):
                return Outcome.DENIED
        return None

    return judge


def _matches(pattern: re.Pattern[str], client: str, plain: str | None) -> bool:
    return bool(pattern.fullmatch(client)) or (plain is not None and bool(pattern.fullmatch(plain)))


def _one_pattern(globs: list[str]) -> re.Pattern[str] | None:
    """All globs as one expression: a hundred rules cost one call."""
    if not globs:
        return None
    return re.compile("|".join(_expression(glob) for glob in globs))


def _expression(glob: str) -> str:
    """A glob as an expression that takes linear time per star. The first place where the
    piece between two stars fits is as good as any later one, so it is never taken
    back (an atomic group); otherwise twenty stars would stall a worker for a minute."""
    first, *pieces = (re.escape(piece).replace(r"\?", ".") for piece in glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>.*?{piece})" for piece in middle) + ".*" + last
