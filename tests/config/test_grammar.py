"""The grammar against C rinetd: every difference is a quirk that we know, or the test fails.

An ordinary run tries some 400 configurations, always the same ones.
FASTFWD_FUZZ_EXAMPLES=20000 tries that many new ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfwd.config.check import check
from fastfwd.config.parse import parse
from fastfwd.config.resolve import Unresolvable, hosts, lookup, numeric
from fastfwd.model import Address, Config, Endpoint, Problem
from tests.config.acceptance import ACCEPTED, OWN, REJECTED
from tests.config.oracle import NamespaceError, Oracle, Verdict
from tests.config.quirks import QUIRKS, Case, Kind
from tests.peers import lack, require_peer

EXAMPLES = int(os.environ.get("FASTFWD_FUZZ_EXAMPLES", "0"))
STRATEGIES = 3
PORTS = st.integers(20001, 20030)

pytestmark = pytest.mark.timeout(120 + EXAMPLES)

fuzz = settings(
    max_examples=(EXAMPLES or 400) // STRATEGIES,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """C rinetd in a network namespace."""
    try:
        oracle = Oracle(require_peer("rinetd"))
    except NamespaceError as error:
        lack(f"no network namespace: {error}")
    yield oracle
    oracle.close()


def known_names() -> dict[str, list[Address]]:
    """The only names in generated files that exist anywhere."""
    try:
        return {"localhost": lookup("localhost")}
    except Unresolvable:
        return {}


NAMES = known_names()


def loopback(address: Address) -> bool:
    """Whether the address is there in the oracle's namespace."""
    return address.text.startswith("127.") or address.text == "::1"


def judge(data: bytes, verdict: Verdict) -> Case:
    """What fastfwd makes of `data`: its own problems, and the names that nobody knows."""
    config, problems = parse(data, "f")
    addresses = {name: NAMES.get(name.lower(), []) for name in set().union(*hosts(config))}
    problems += check(config, addresses=addresses, is_local=loopback)
    for forward in config.forwards:
        for host in (forward.listen.host, *forward.hosts):
            if host is not None and numeric(host) is None and not addresses[host]:
                problems.append(Problem(forward.origin, f"cannot resolve {host!r}"))
    return Case(data, config, tuple(problems), verdict)


def listening(endpoint: Endpoint) -> tuple[str, str, int]:
    """What proc(5) should say of a listener."""
    address = numeric(endpoint.host) or NAMES[endpoint.host.lower()][0]
    return endpoint.protocol.value, address.text, endpoint.port


def same_listeners(config: Config, verdict: Verdict) -> bool:
    """Whether rinetd listens on what the configuration says; port 0 stands for any one port."""
    wanted = Counter(listening(forward.listen) for forward in config.forwards)
    found = Counter(verdict.listeners)
    anywhere = Counter({each: count for each, count in wanted.items() if each[2] == 0})
    left = found - (wanted - anywhere)
    return found >= wanted - anywhere and anywhere == Counter(
        {(kind, address, 0): 0 for kind, address, _ in left}
    ) + Counter((kind, address, 0) for kind, address, _ in left.elements())


def explained(case: Case, kind: Kind, problem: Problem | None = None) -> bool:
    return any(kind in quirk.kinds and quirk.explains(case, problem) for quirk in QUIRKS)


def unexplained(case: Case) -> list[str]:
    """The differences between fastfwd and rinetd that no quirk explains."""
    verdict = case.verdict
    if verdict.accepted:
        differences = [
            f"rinetd loads it, fastfwd says {problem}"
            for problem in case.problems
            if not explained(case, Kind.REJECTED, problem)
        ]
        if (
            not case.problems
            and not same_listeners(case.config, verdict)
            and not explained(case, Kind.LISTENERS)
        ):
            differences.append(f"rinetd listens on {verdict.listeners}")
        return differences
    if not case.problems:
        return [] if explained(case, Kind.ACCEPTED) else [f"fastfwd loads it, rinetd says {verdict.error}"]
    if verdict.line is not None and verdict.line not in {problem.origin.line for problem in case.problems}:
        return [] if explained(case, Kind.LINE) else [f"rinetd's line {verdict.line} is right for fastfwd"]
    return []


# The grammar (rinetd(8), and by experiment).


def weighted(*choices: tuple[int, st.SearchStrategy[str]]) -> st.SearchStrategy[str]:
    """One of several, each as often as its number says (one_of takes a repeated strategy once)."""
    table = [strategy for count, strategy in choices for _ in range(count)]
    return st.integers(0, len(table) - 1).flatmap(table.__getitem__)


blanks = st.sampled_from([" ", "  ", "\t", " \t"])
maybe_blanks = st.sampled_from(["", "", "", " ", "\t "])
comment = st.one_of(
    st.just(""),
    st.just(""),
    st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=12).map(
        "#{}".format
    ),
)
octet = st.integers(0, 255)
ipv4 = st.one_of(
    st.builds("127.{}.{}.{}".format, octet, octet, octet),
    st.sampled_from(["127.0.0.1", "127.0.0.2", "0.0.0.0", "0", "127.0.0.010", "127.0.0.001"]),
)
ipv6 = st.sampled_from(["::1", "::", "0:0::1", "::ffff:7f00:1", "::FFFF:7F00:2"])
bind_host = weighted((12, ipv4), (3, ipv6), (2, st.just("localhost")), (1, ipv6.map("[{}]".format)))
dial_host = weighted(
    (12, ipv4),
    (3, ipv6),
    (4, st.sampled_from(["localhost", "10.0.0.1", "2001:db8::1", "1:2:3:4:5:6:7:8"])),
    (1, st.just("nosuch.invalid")),
)
bind_port = st.one_of(
    PORTS.map(str), PORTS.map(str), st.sampled_from(["0", "020031", "http", "domain", "65535"])
)
dial_port = st.one_of(PORTS.map(str), st.sampled_from(["0", "80", "http", "domain", "whois", "kerberos"]))
suffix = st.sampled_from([""] * 12 + ["/tcp", "/tcp", "/udp"])
option = st.one_of(
    st.builds("timeout{1}={2}{0}".format, st.integers(0, 10**12), maybe_blanks, maybe_blanks),
    st.builds("src{1}={2}{0}".format, st.one_of(ipv4, ipv6), maybe_blanks, maybe_blanks),
)
option_list = st.builds(
    lambda first, parts, last: f"{first}[{','.join(parts)}]{last}",
    maybe_blanks,
    st.lists(st.builds("{1}{0}{2}".format, option, maybe_blanks, maybe_blanks), min_size=1, max_size=3),
    maybe_blanks,
)
forward = st.builds(
    lambda host, a, port, b, to, c, to_port, options: f"{host}{a}{port}{b}{to}{c}{to_port}{options}",
    bind_host,
    blanks,
    st.builds("{}{}".format, bind_port, suffix),
    blanks,
    dial_host,
    blanks,
    st.builds("{}{}".format, dial_port, suffix),
    st.one_of(st.just(""), st.just(""), option_list),
)
access = st.builds(
    "{}{}{}".format,
    st.sampled_from(["allow", "deny"]),
    blanks,
    st.text("0123456789abcdefABCDEF:.*?[]", min_size=1, max_size=15),
)
file_name = st.one_of(
    st.sampled_from(["log", "log#c", '"a log"', '"log"', "#c", '"half', "'log'", "."]),
    st.text(
        st.characters(exclude_characters='/\n\r\0 \t"', exclude_categories=["Cs"]), min_size=1, max_size=8
    ),
)
directive = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(["logfile", "pidlogfile"]), blanks, file_name),
    st.just("logcommon"),
)
own = st.sampled_from([data.decode().rstrip("\n") for data in OWN.values()])
line = st.builds(
    "{}{}{}{}".format,
    maybe_blanks,
    weighted((32, forward), (8, access), (8, directive), (4, st.just("")), (1, own)),
    maybe_blanks,
    comment,
)
valid_file = st.builds(
    lambda lines, ends, last: "".join(
        each + end for each, end in zip(lines, [*ends[: max(0, len(lines) - 1)], last], strict=False)
    ).encode(),
    st.lists(line, min_size=1, max_size=6),
    st.lists(st.sampled_from(["\n", "\n", "\n", "\r\n", "\0"]), min_size=6, max_size=6),
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\0", ""]),
)


strange = st.sampled_from(
    [bytes([each]) for each in b"\0\r\n\f\v\x1a\x7f\xa0 \t#;[]=,/\"'.:*?%-_+09afxz"]
    + [b"\xef\xbb\xbf", b"\xc3\xa9"]
)


@st.composite
def mutated_file(draw: st.DrawFn) -> bytes:
    """A valid file with one byte wrong."""
    data = draw(valid_file.filter(bool))
    at = draw(st.integers(0, len(data) - 1))
    before, byte, after = data[:at], data[at : at + 1], data[at + 1 :]
    kind = draw(st.sampled_from(["drop", "double", "swap", "case", "replace", "insert"]))
    match kind:
        case "drop":
            return before + after
        case "double":
            return before + byte * 2 + after
        case "swap":
            return before + after[:1] + byte + after[1:]
        case "case":
            return before + byte.swapcase() + after
        case "replace":
            return before + draw(strange) + after
        case _:
            return before + draw(strange) + byte + after


words = st.sampled_from(
    [
        *["allow", "deny", "logfile", "pidlogfile", "logcommon", "timeout", "src"],
        *["127.0.0.1", "localhost", "::1", "20001", "http", "/tcp", "/udp"],
        *["include", "workers", "unix:/x", "20001-20002", "127.0.0.1,127.0.0.2", "*2", "@", "mode", "/8"],
        *'[]=,#*?";-.01\t\r\f\0',
        *[" "] * 4,
        *["\n"] * 4,
        "\r\n",
    ]
)
text = st.one_of(
    st.lists(words, max_size=20).map(lambda parts: "".join(parts).encode()),
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=40).map(str.encode),
    st.binary(max_size=40).map(lambda data: data.replace(b"/", b"")),
)
text_file = st.builds(lambda data, end: data + end, text, st.sampled_from([b"\n", b"\n", b"\0", b""]))


@pytest.mark.parametrize("data", [*ACCEPTED.values(), *REJECTED.values()], ids=[*ACCEPTED, *REJECTED])
def test_row_of_the_acceptance_table(oracle: Oracle, data: bytes) -> None:
    """rinetd and fastfwd judge every row alike, quirks excepted."""
    assert unexplained(judge(data, oracle.judge(data))) == []


@pytest.mark.parametrize("data", OWN.values(), ids=OWN)
def test_line_of_fastfwds_own(oracle: Oracle, data: bytes) -> None:
    """rinetd has no meaning for what fastfwd has added, and that is a known difference."""
    case = judge(data, oracle.judge(data))
    assert (case.problems, case.verdict.accepted) == ((), False)
    assert unexplained(case) == []


@fuzz
@given(data=valid_file)
def test_valid_by_construction(oracle: Oracle, data: bytes) -> None:
    """Files made by the grammar mean the same to both."""
    assert unexplained(judge(data, oracle.judge(data))) == []


@fuzz
@given(data=mutated_file())
def test_one_byte_wrong(oracle: Oracle, data: bytes) -> None:
    """A valid file with one byte dropped, doubled, swapped or replaced means the same to both."""
    assert unexplained(judge(data, oracle.judge(data))) == []


@fuzz
@given(data=text_file)
def test_any_text(oracle: Oracle, data: bytes) -> None:
    """Anything at all means the same to both."""
    assert unexplained(judge(data, oracle.judge(data))) == []
