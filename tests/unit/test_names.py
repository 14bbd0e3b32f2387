"""The supervisor's book of names: what it asks, what it believes, what it keeps."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fastfwd.model import Address, Backend, Config, Endpoint, Forward, Origin, Protocol
from fastfwd.supervisor.names import AGAIN, RETRY, Names, periods

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
ONE, TWO, SIX = Address(V4, "192.0.2.1"), Address(V4, "192.0.2.2"), Address(V6, "2001:db8::1")


REFRESH = 600


class Book:
    """A `Names` and the questions it has asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.names = Names(self.asked.append)

    def found(self, host: str, *addresses: Address, now: float = 0.0) -> str | None:
        """The resolver has found `addresses`."""
        pairs = [[address.family, address.text] for address in addresses]
        return self.names.answer({"op": "found", "host": host, "addresses": pairs}, now)

    def failed(self, host: str, *, definitive: bool = False, now: float = 0.0) -> str | None:
        """The resolver has found nothing."""
        return self.names.answer(
            {"op": "failed", "host": host, "reason": "no luck", "definitive": definitive}, now
        )

    def due_at(self, host: str, after: float) -> float:
        """The first moment after `after`, in whole tenths of a second, at which `host` is asked for."""
        count = self.asked.count(host)
        now = after
        while self.asked.count(host) == count:
            now = round(now + 0.1, 1)
            assert now < after + 2 * REFRESH
            self.names.refresh(now)
        return now


@pytest.fixture
def book() -> Book:
    """A book that wants `web`."""
    made = Book()
    made.names.want({"web": REFRESH})
    return made


# Asking.


def test_a_name_is_asked_for(book: Book) -> None:
    """A name is a question, and waited for."""
    assert book.asked == ["web"]
    assert book.names.waiting(["web"])


@pytest.mark.parametrize(
    ("host", "address"),
    [("192.0.2.1", ONE), ("0", Address(V4, "0.0.0.0")), ("2001:db8::1", SIX), ("::", Address(V6, "::"))],
)
def test_numbers_are_known_at_once(host: str, address: Address) -> None:
    """What is numeric needs no question."""
    book = Book()
    book.names.want({host: REFRESH})
    assert book.asked == []
    assert book.names.addresses == {host: [address]}
    assert not book.names.waiting([host])


def test_a_question_is_asked_once(book: Book) -> None:
    """Wanted again while the answer is on its way, it is not asked twice."""
    book.names.want({"web": REFRESH})
    assert book.asked == ["web"]


def test_waiting_is_about_the_names_given(book: Book) -> None:
    """Whether another name is waited for does not matter."""
    assert not book.names.waiting(["other", "192.0.2.1"])
    assert book.names.waiting(["other", "web"])


def test_a_reload_asks_again(book: Book) -> None:
    """A name that is known is looked up anew when it is wanted anew."""
    book.found("web", ONE)
    book.names.want({"web": REFRESH})
    assert book.asked == ["web", "web"]
    assert book.names.addresses["web"] == [ONE]


def test_a_new_resolver_is_asked_everything_open(book: Book) -> None:
    """After the resolver's death open questions are repeated, answered ones are not."""
    book.names.want({"mail": REFRESH})
    book.found("mail", ONE)
    book.names.ask_again()
    assert book.asked == ["web", "mail", "web"]


# Answers.


def test_an_answer_is_taken(book: Book) -> None:
    """Addresses are kept in the resolver's order, and the host is reported as changed."""
    assert book.found("web", TWO, ONE, SIX) == "web"
    assert book.names.addresses["web"] == [TWO, ONE, SIX]
    assert not book.names.waiting(["web"])


def test_a_new_address_is_news(book: Book) -> None:
    """Other addresses replace the old ones and are reported."""
    book.found("web", ONE)
    book.names.want({"web": REFRESH})
    assert book.found("web", TWO) == "web"
    assert book.names.addresses["web"] == [TWO]


def test_the_same_answer_is_no_news(book: Book) -> None:
    """Nothing is reported when nothing has changed."""
    book.found("web", ONE, TWO)
    book.names.want({"web": REFRESH})
    assert book.found("web", ONE, TWO) is None


def test_a_rotated_answer_is_no_news(book: Book) -> None:
    """A name server that turns its list round does not make the workers dial elsewhere."""
    book.found("web", ONE, TWO)
    book.names.want({"web": REFRESH})
    assert book.found("web", TWO, ONE) is None
    assert book.names.addresses["web"] == [ONE, TWO]


def test_a_failure_keeps_the_old_addresses(book: Book) -> None:
    """An old address is better than none."""
    book.found("web", ONE)
    book.names.want({"web": REFRESH})
    assert book.failed("web") is None
    assert book.names.addresses["web"] == [ONE]
    assert book.names.failures["web"].reason == "no luck"


@pytest.mark.parametrize("definitive", [True, False])
def test_a_failure_says_whether_the_name_exists(book: Book, definitive: bool) -> None:
    """A name that does not exist is another thing than a name service that is silent."""
    book.failed("web", definitive=definitive)
    assert book.names.failures["web"].definitive is definitive


def test_success_clears_the_failure(book: Book) -> None:
    """A name that is found has no failure any more."""
    book.failed("web")
    book.names.want({"web": REFRESH})
    book.found("web", ONE)
    assert book.names.failures == {}


# What is not believed.


def test_an_answer_nobody_asked_for_is_refused(book: Book) -> None:
    """The resolver cannot introduce a host."""
    with pytest.raises(ValueError, match="nobody asked"):
        book.found("bank", ONE)
    assert "bank" not in book.names.addresses


def test_a_second_answer_is_refused(book: Book) -> None:
    """One question, one answer."""
    book.found("web", ONE)
    with pytest.raises(ValueError, match="nobody asked"):
        book.found("web", TWO)
    assert book.names.addresses["web"] == [ONE]


NONSENSE: list[Any] = [
    [[V4, "not an address"]],
    [[V4, "2001:db8::1"]],
    [[V6, "192.0.2.1"]],
    [[1, "/tmp/socket"]],
    [[float(V4), "192.0.2.1"]],
    [["2", "192.0.2.1"]],
    [[V4, 3221225985]],
    [[V4, "192.0.2.1\0"]],
    [[V4]],
    [V4],
    [[V4, "192.0.2.1", 80]],
    {"2": "192.0.2.1"},
    "2",
    None,
    7,
]


@pytest.mark.parametrize("addresses", NONSENSE, ids=repr)
def test_nonsense_is_refused(book: Book, addresses: Any) -> None:
    """What is no list of addresses is an error that the supervisor survives, and changes nothing."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        book.names.answer({"op": "found", "host": "web", "addresses": addresses}, 0.0)
    assert book.names.addresses["web"] == []


def test_a_name_is_asked_for_again_after_nonsense(book: Book) -> None:
    """A resolver that talked nonsense about a name does not silence it for ever."""
    with pytest.raises(ValueError, match="no address"):
        book.names.answer({"op": "found", "host": "web", "addresses": [[V4, "nonsense"]]}, 0.0)
    assert book.names.waiting(["web"]) or book.due_at("web", 0.0) <= REFRESH


@pytest.mark.parametrize("host", [None, 5, ["web"], {"web": 1}])
def test_a_host_that_is_no_text_is_refused(book: Book, host: Any) -> None:
    """An answer must name its host."""
    with pytest.raises(ValueError, match="nobody asked"):
        book.names.answer({"op": "found", "host": host, "addresses": []}, 0.0)


# Time.


def test_a_known_name_is_asked_for_again(book: Book) -> None:
    """REFRESH seconds after an answer, not before."""
    book.found("web", ONE, now=1000.0)
    assert book.due_at("web", 1000.0) == 1000.0 + REFRESH


def test_an_answer_that_holds_for_ever(book: Book) -> None:
    """With a period of 0 nobody asks again by himself."""
    book.names.keep({"web": 0})
    book.found("web", ONE, now=0.0)
    book.names.refresh(1e9)
    assert book.asked == ["web"]


def test_dials_that_fail_ask_again(book: Book) -> None:
    """At once, but not more often than every AGAIN seconds, and only about a name that is in use."""
    book.found("web", ONE, now=0.0)
    for host in ("web", "other", "127.0.0.1", None, ["web"]):
        book.names.suspect(host, 100.0)
    assert book.asked == ["web", "web"]
    book.found("web", ONE, now=100.0)
    book.names.suspect("web", 100.0 + AGAIN / 2)
    assert book.asked == ["web", "web"]
    book.names.suspect("web", 100.0 + AGAIN)
    assert book.asked == ["web", "web", "web"]


def test_the_shortest_period_counts() -> None:
    """Of the forwards that dial a name; `off` is no period at all."""

    def to(host: str, refresh: int | None) -> Forward:
        listen = Endpoint("127.0.0.1", 2001, Protocol.TCP)
        return Forward(
            listen, (Backend(Endpoint(host, 80, Protocol.TCP), dns_refresh=refresh),), Origin("f", 1)
        )

    forwards = (to("a", 30), to("a", 5), to("a", 0), to("b", None), to("c", 0))
    found = periods(Config("f", forwards, dns_refresh=90))
    assert {host: found[host] for host in "abc"} == {"a": 5, "b": 90, "c": 0}


def test_a_failed_name_is_tried_again_with_growing_pauses(book: Book) -> None:
    """The pauses are RETRY's, and the last one goes on."""
    now, pauses = 0.0, []
    for _ in range(len(RETRY) + 2):
        book.failed("web", now=now)
        then = book.due_at("web", now)
        pauses.append(round(then - now, 1))
        now = then
    assert pauses == [*RETRY, RETRY[-1], RETRY[-1]]


def test_success_starts_the_pauses_again(book: Book) -> None:
    """After a good answer the next failure is the first."""
    book.failed("web", now=0.0)
    now = book.due_at("web", 0.0)
    book.failed("web", now=now)
    now = book.due_at("web", now)
    book.found("web", ONE, now=now)
    now = book.due_at("web", now)
    book.failed("web", now=now)
    assert book.due_at("web", now) == now + RETRY[0]


def test_nothing_is_asked_while_an_answer_is_due(book: Book) -> None:
    """A silent resolver is not asked the same question again and again."""
    for hour in range(10):
        book.names.refresh(hour * 3600.0)
    assert book.asked == ["web"]


# Forgetting.


def test_what_is_not_kept_is_forgotten(book: Book) -> None:
    """After a reload without a name it is neither known nor asked for."""
    book.found("web", ONE, now=0.0)
    book.names.want({"mail": REFRESH})
    book.names.keep({"mail": REFRESH})
    book.names.refresh(10 * REFRESH)
    assert set(book.names.addresses) == {"mail"}
    assert book.asked == ["web", "mail"]


def test_an_open_question_about_a_forgotten_name_is_not_waited_for(book: Book) -> None:
    """Nobody waits for an answer that nobody needs."""
    book.names.keep({})
    assert not book.names.waiting(["web"])


def test_what_is_kept_stays(book: Book) -> None:
    """Kept names keep their addresses and their next question."""
    book.found("web", ONE, now=0.0)
    book.names.keep({"web": REFRESH})
    assert book.names.addresses["web"] == [ONE]
    assert book.due_at("web", 0.0) == REFRESH
