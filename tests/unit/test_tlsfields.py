"""What a peer calls itself, made fit for a log."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastfwd.observe.tlsfields import MOST, name, printable


@given(st.text())
@example("\n\r\x1b[2J\x07\x7f\x9b\u202e\u2028\ud800" * 1000)
def test_a_name_is_printable_and_short(text: str) -> None:
    """Whatever it was."""
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= MOST
    assert len(shown) == min(len(text), MOST)
    shown.encode()


@pytest.mark.parametrize("text", ["example.org", 'a "b" \\', "ä€", "", "x" * MOST])
def test_a_harmless_name_stays(text: str) -> None:
    """Also a long one, and one that JSON has to quote."""
    assert printable(text) == text


@given(st.lists(st.lists(st.tuples(st.text(), st.text()), min_size=1)))
def test_a_subject_is_printable_and_short(subject: list[list[tuple[str, str]]]) -> None:
    """Of any number of attributes."""
    shown = name(subject)
    assert shown.isprintable()
    assert len(shown) <= MOST


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ([[("countryName", "SE")], [("commonName", "db")]], "CN=db,C=SE"),
        ([[("commonName", "db"), ("userId", "7")]], "CN=db+UID=7"),
        ([[("commonName", "a,CN=b")]], "CN=a\\,CN\\=b"),
        ([[("commonName", "a\\,b")]], "CN=a\\\\\\,b"),
        ([[("emailAddress", "a@b")]], "emailAddress=a@b"),
        ([], ""),
    ],
)
def test_a_subject(subject: list[list[tuple[str, str]]], shown: str) -> None:
    """In RFC 4514's order, with what separates its parts escaped: nobody adds a part that is none."""
    assert name(subject) == shown
