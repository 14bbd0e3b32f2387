"""What a reload changes."""

from __future__ import annotations

import pytest

from fastfwd.config.diff import Difference, diff
from fastfwd.config.parse import parse
from fastfwd.model import Config


def config(text: str) -> Config:
    found, problems = parse(text.encode(), "file")
    assert problems == []
    return found


def changes(old: str, new: str) -> Difference:
    return diff(config(old), config(new))


def test_nothing_changes() -> None:
    """A configuration differs from itself in nothing."""
    text = "workers 2\n127.0.0.1 2001 192.0.2.1 80\n127.0.0.1 2002 192.0.2.1 80\n"
    difference = changes(text, text)
    assert len(difference.kept) == 2
    assert (difference.added, difference.removed, difference.fixed) == ((), (), ())


def test_kept_pairs_old_and_new() -> None:
    """A listener stays when only its target changes; both forwards are told."""
    difference = changes("127.0.0.1 2001 192.0.2.1 80\n", "\n127.0.0.1 2001 192.0.2.2 81 [name=x]\n")
    [(old, new)] = difference.kept
    assert (old.target.port, new.target.port) == (80, 81)


def test_added_and_removed() -> None:
    """A listener with another port is another listener."""
    difference = changes("127.0.0.1 2001 192.0.2.1 80\n", "127.0.0.1 2002 192.0.2.1 80\n")
    assert difference.kept == ()
    assert [forward.listen.port for forward in difference.added] == [2002]
    assert [forward.listen.port for forward in difference.removed] == [2001]


def test_protocol_makes_another_listener() -> None:
    """TCP and UDP on one port are two listeners."""
    difference = changes("127.0.0.1 2001 192.0.2.1 80\n", "127.0.0.1 2001/udp 192.0.2.1 80\n")
    assert (len(difference.kept), len(difference.added), len(difference.removed)) == (0, 1, 1)


@pytest.mark.parametrize(("old", "new"), [("0", "0.0.0.0"), ("::1", "[0:0::1]"), ("Name", "name")])
def test_spelling_is_no_difference(old: str, new: str) -> None:
    """The same address in another spelling is the same listener."""
    difference = changes(f"{old} 2001 192.0.2.1 80\n", f"{new} 2001 192.0.2.1 80\n")
    assert len(difference.kept) == 1


def test_port_0_is_matched_in_order() -> None:
    """Listeners on any port are told apart by their order only."""
    old = "127.0.0.1 0 192.0.2.1 1\n127.0.0.1 0 192.0.2.1 2\n127.0.0.1 0 192.0.2.1 3\n"
    difference = changes(old, "127.0.0.1 0 192.0.2.1 4\n127.0.0.1 0 192.0.2.1 5\n")
    assert [(before.target.port, after.target.port) for before, after in difference.kept] == [(1, 4), (2, 5)]
    assert [forward.target.port for forward in difference.removed] == [3]


def test_order_of_the_files() -> None:
    """Kept and added forwards come in the new file's order, removed ones in the old one's."""
    old = "".join(f"127.0.0.1 {port} 192.0.2.1 80\n" for port in (2003, 2001, 2002, 2004))
    new = "".join(f"127.0.0.1 {port} 192.0.2.1 80\n" for port in (2009, 2001, 2008, 2003))
    difference = changes(old, new)
    assert [after.listen.port for _, after in difference.kept] == [2001, 2003]
    assert [forward.listen.port for forward in difference.added] == [2009, 2008]
    assert [forward.listen.port for forward in difference.removed] == [2002, 2004]


@pytest.mark.parametrize("line", ["workers 3", "user nobody", "group nogroup", "pidlogfile /run/x.pid"])
def test_directive_fixed_at_start(line: str) -> None:
    """What cannot change in a running service is named by its directive."""
    assert changes("", line).fixed == (line.partition(" ")[0],)


@pytest.mark.parametrize("line", ["logfile /x", "logcommon", "logduration", "allow *"])
def test_directive_that_a_reload_takes(line: str) -> None:
    """Logging and access rules are not fixed."""
    assert changes("", line).fixed == ()
