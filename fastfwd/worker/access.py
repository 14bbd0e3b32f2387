"""Who may connect: allow and deny rules over a client's numeric address.

Pure; worker/accept and worker/udp ask once per connection and flow, the command line asks which
rule decides (`--explain`). It must never resolve a name.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence

from fastfwd.model import AccessRule, Outcome

MAPPED = "::ffff:"
"""How a dual-stack socket spells an IPv4 client (RFC 4291, 2.5.5.2)."""

Judge = Callable[[str], Outcome | None]
"""(numeric client address) -> None to let it in, or NOT_ALLOWED / DENIED."""


def compile_rules(
    scopes: Sequence[Sequence[AccessRule]], compiled: dict[int, Scope] | None = None
) -> Judge | None:
    """A judge over `scopes` in order (global rules, then the forward's own), or None when
    there is not a single rule. `compiled` remembers scopes from one call to the next, by their identity,
    while they live: of a thousand ports that share a hundred thousand rules each has the same patterns.

    In each scope a client must match an allow pattern if the scope has any, and no
    deny pattern; order inside a scope does not matter. An IPv4-mapped client
    (`::ffff:192.0.2.1`) also matches by its IPv4 form, so that a deny cannot be
    escaped through a dual-stack listener, and a link-local one without its zone.
    """
    compiled = {} if compiled is None else compiled
    for scope in scopes:
        if id(scope) not in compiled:
            allow, deny = _sorted(scope)
            compiled[id(scope)] = Patterns(allow) if allow else None, Patterns(deny) if deny else None
    checks = [compiled[id(scope)] for scope in scopes if scope]
    if not checks:
        return None

    def judge(client: str) -> Outcome | None:
        forms = spellings(client)
        for allow, deny in checks:
            if allow and not allow.match(forms):
                return Outcome.NOT_ALLOWED
            if deny and deny.match(forms):
                return Outcome.DENIED
        return None

    return judge


def explain(scopes: Sequence[Sequence[AccessRule]], client: str) -> tuple[Outcome | None, list[AccessRule]]:
    """What `compile_rules` of the same `scopes` says of `client`, and the rules that decide it: the one
    that denies; those of which not one allows; those that let it in."""
    forms = spellings(client)
    reasons = []
    for allow, deny in map(_sorted, scopes):
        allows = [rule for rule in allow if Patterns([rule]).match(forms)]
        if allow and not allows:
            return Outcome.NOT_ALLOWED, allow
        for rule in deny:
            if Patterns([rule]).match(forms):
                return Outcome.DENIED, [rule]
        reasons += allows[:1]
    return None, reasons


def spellings(client: str) -> list[str]:
    """The forms in which patterns are tried on a numeric address, the kernel's own first."""
    if client.startswith(MAPPED) and "." in client:
        return [client, client[len(MAPPED) :]]
    if "%" in client:
        return [client, client.partition("%")[0]]
    return [client]


class Patterns:
    """A set of patterns. What a look costs depends on how many lengths the networks' prefixes have
    and on the globs, not on how many networks and addresses there are."""

    def __init__(self, rules: Iterable[AccessRule]) -> None:
        """The patterns of `rules`, in config/pattern's spelling."""
        self._addresses: set[str] = set()
        # By bytes of an address: by bits that a prefix lacks: prefixes.
        self._networks: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        globs = []
        for pattern in {rule.pattern for rule in rules}:
            if (network := _network(pattern)) is not None:
                size, shift, prefix = network
                self._networks[size].setdefault(shift, set()).add(prefix)
            elif "*" in pattern or "?" in pattern:
                globs.append(pattern)
            else:
                self._addresses.add(pattern)
        # All globs as one expression: a hundred of them cost one call.
        self._globs = re.compile("|".join(map(_expression, sorted(globs)))).fullmatch if globs else None

    def match(self, forms: Iterable[str]) -> bool:
        """Whether an address that has these `forms` matches any of them."""
        for form in forms:
            if form in self._addresses or (self._globs is not None and self._globs(form)):
                return True
            networks = self._networks[16 if ":" in form else 4]
            if networks and "%" not in form:
                number = int.from_bytes(packed_address(form))
                for shift, prefixes in networks.items():
                    if number >> shift in prefixes:
                        return True
        return False


_OCTETS = re.compile(r"((?:[0-9]{1,3}\.){1,3})\*")


Scope = tuple[Patterns | None, Patterns | None]
"""What the rules of a scope allow, and what they deny; None where none of that kind are."""


def _network(pattern: str) -> tuple[int, int, int] | None:
    """The network that a pattern is, as written or as a glob that ends at a dot (`10.1.*`): bytes of an
    address, bits that the prefix lacks, the prefix without them."""
    if "/" in pattern:
        text, _, length = pattern.partition("/")
    elif (match := _OCTETS.fullmatch(pattern)) is not None:
        octets = match[1].rstrip(".").split(".")
        text, length = ".".join([*octets, "0", "0", "0"][:4]), str(8 * len(octets))
    else:
        return None
    try:
        packed = packed_address(text)
    except OSError:  # 010.*, 300.*: no address begins so
        return None
    shift = 8 * len(packed) - int(length)
    return len(packed), shift, int.from_bytes(packed) >> shift


def packed_address(text: str) -> bytes:
    """A numeric address in 4 or 16 bytes. Raises OSError."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _sorted(rules: Sequence[AccessRule]) -> tuple[list[AccessRule], list[AccessRule]]:
    """Those that allow, those that deny."""
    return [rule for rule in rules if rule.allow], [rule for rule in rules if not rule.allow]


def _expression(glob: str) -> str:
    """A glob as an expression that takes linear time per star. The first place where the
    piece between two stars fits is as good as any later one, so it is never taken
    back (an atomic group); otherwise twenty stars would stall a worker for a minute."""
    first, *pieces = (re.escape(piece).replace(r"\?", ".") for piece in glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>.*?{piece})" for piece in middle) + ".*" + last
