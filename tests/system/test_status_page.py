"""The status page in a real browser, in front of a real program.

Most facts are read off one program that all tests here share and none disturbs; what
kills, reloads or stops a program does it to one of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import trustme
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import echo, serve
from tests.sockets import Address, connect, read_exactly, read_to_end
from tests.system.browser import open_browser, show_at

HOST = "127.0.0.1"
METRICS = f"metrics {HOST}:0\n"
LONG = "n" * 1000
"""A forward's name has no longest length; this one is longer than any screen is wide."""

ODD = "-_.:a::b..-"
"""Every character besides letters and digits that a name may have."""

NARROW = "\u202f"
"""The space that keeps a figure and its unit on one line."""

BROKEN = "no configuration\n"


def url_of(program: Forwarder) -> str:
    """Where the exporter said that it is."""
    found = re.findall(r"metrics: (http://\S+/)", program.stderr())
    assert found, program.stderr()
    return str(found[-1])


def fetch_status(url: str) -> dict[str, object]:
    """What the page is made of."""
    with urlopen(f"{url}status", timeout=deadline.seconds(10)) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def talk(address: Address, text: bytes = b"hello") -> None:
    """A session from its begin to its end, through an echoing backend."""
    with connect(address) as client:
        client.sendall(text)
        assert read_exactly(client, len(text)) == text


class Page:
    """What a reader sees of a program's status page and does to it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        """Load it and wait for its first figures."""
        self.browser.get(url)
        self.wait("#state", "serving")

    def run(self, script: str, *arguments: object) -> object:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of the first such element, with what is scrolled away and what is only spoken."""
        text = str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))
        return text.replace(NARROW, " ")

    def texts(self, selector: str) -> list[str]:
        """The texts of all such elements that a reader can see, from top to bottom."""
        script = """return [...document.querySelectorAll(arguments[0])]
            .filter((found) => found.checkVisibility()).map((found) => found.textContent)"""
        texts: list[str] = self.browser.execute_script(script, selector)
        return texts

    def wait(self, selector: str, text: str, seconds: float = 15) -> None:
        """Wait until an element holds `text`."""

        def look() -> bool:
            return text in self.text(selector)

        try:
            until(look, seconds)
        except AssertionError:
            raise AssertionError(f"{selector} says {self.text(selector)!r}, not {text!r}") from None

    def names(self) -> list[str]:
        """The forwards' names."""
        return self.texts("#forwards .opener")

    def background(self) -> str:
        return str(self.run("return getComputedStyle(document.body).backgroundColor"))

    def width(self) -> int:
        """Pixels from the left edge to the end of what can be scrolled to."""
        return int(str(self.run("return document.documentElement.scrollWidth")))

    def log(self, kind: str) -> list[dict[str, str]]:
        """What the browser has noted since the last call."""
        entries: list[dict[str, str]] = self.browser.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def complaints(self) -> list[object]:
        """What the browser's console holds since the last call: errors, violations of the policy."""
        return [entry["message"] for entry in self.log("browser")]

    def requested(self) -> list[str]:
        """Every address asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


def cell(name: str, column: str) -> str:
    """Selects a forward's cell."""
    return f'#forwards tbody[data-name="{name} tcp"] [data-column="{column}"]'


def worker_cell(slot: int, column: str) -> str:
    """Selects a worker's cell."""
    return f'#workers tbody[data-name="{slot}"] [data-column="{column}"]'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser for all tests: to start it takes longer than most of them."""
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: webdriver.Chrome) -> Iterator[Page]:
    """A page that nothing is left on of the test before, 1280 pixels wide and light."""
    browser.get("about:blank")
    show_at(browser, 1280)
    shown = Page(browser)
    shown.complaints()
    shown.requested()
    yield shown
    browser.set_window_rect(0, 0, 1280, 900)  # a test may have minimised it


class Site:
    """A running program with forwards of these names, all to one backend."""

    def __init__(self, program: Forwarder, ports: dict[str, int]) -> None:
        self.program = program
        self.ports = ports
        self.url = url_of(program)

    def address(self, name: str) -> Address:
        return HOST, self.ports[name]


def lines(ports: dict[str, int], backend: Address) -> str:
    """A forward for each port."""
    host, port = backend
    return "".join(f"{HOST} {listen} {host} {port} [name={name}]\n" for name, listen in ports.items())


NAMES = ("www", ODD, LONG, *(f"spare-{number}" for number in range(6)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The program that all tests share. `www` has had one session, of five bytes each way."""
    ports = {name: free_port() for name in NAMES}
    with ExitStack() as stack:
        backend = stack.enter_context(serve(echo))
        directory = tmp_path_factory.mktemp("site")
        config = lines(ports, backend.address) + METRICS
        shared = Site(stack.enter_context(Forwarder(directory, config)), ports)
        talk(shared.address("www"))
        yield shared


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(forwarder: StartForwarder, backend: StartServer) -> StartSite:
    """Call it with names for a program of the test's own; `port` is where its exporter listens."""

    def start(*names: str, port: int = 0, **options: object) -> Site:
        ports = {name: free_port() for name in names or ("www",)}
        config = lines(ports, backend(echo).address) + f"metrics {HOST}:{port}\n"
        return Site(forwarder(config, **options), ports)

    return start


@contextmanager
def session(address: Address) -> Iterator[None]:
    """A session that is open inside the block."""
    with connect(address) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        yield


# What it shows


def test_the_page_names_every_forward(page: Page, site: Site) -> None:
    """In the configuration's order, with where each listens and leads."""
    page.open(site.url)
    assert f"{HOST}:{site.ports['www']} → {HOST}:" in page.text(cell("www", "forward"))
    assert page.names() == list(NAMES)


def test_an_open_session_is_counted_until_it_ends(page: Page, start_site: StartSite) -> None:
    """`Active` rises and falls while the page stays open."""
    started = start_site()
    page.open(started.url)
    assert page.text(cell("www", "active")) == "0"
    with session(started.address("www")):
        page.wait(cell("www", "active"), "1")
    page.wait(cell("www", "active"), "0")


def test_traffic_shows_without_loading_the_page_again(page: Page, start_site: StartSite) -> None:
    """The bytes of a session arrive in a page that was opened before it."""
    started = start_site()
    page.open(started.url)
    page.run("window.opened = true")
    talk(started.address("www"), b"x" * 1500)
    page.wait(cell("www", "bytes"), "1.50 kB")
    assert page.run("return window.opened") is True


def test_exact_bytes_are_a_gesture_away(page: Page, site: Site) -> None:
    """The title of a rounded figure has every digit."""
    page.open(site.url)
    title = page.find(cell("www", "bytes")).get_attribute("title")
    assert title == "5 bytes from clients, 5 to clients"


def test_connections_draw_a_sparkline(page: Page, start_site: StartSite) -> None:
    """Two samples make a line."""
    started = start_site()
    page.open(started.url)
    for _ in range(10):
        talk(started.address("www"))
    line = f"{cell('www', 'connections')} .line"
    until(lambda: "L" in str(page.find(line).get_attribute("d")), what="a line of two points")


def test_the_head_has_the_program_and_its_configuration(page: Page, site: Site) -> None:
    """Version, workers, and which file is in use."""
    page.open(site.url)
    assert page.text("#version") == fetch_status(site.url)["version"]
    assert str(site.program.config_path) in page.text("#config")
    assert page.text("#running") == "workers 2 of 2"


def test_every_worker_has_a_row(page: Page, site: Site) -> None:
    """With the process that serves in its slot now."""
    page.open(site.url)
    shown = {slot: page.text(worker_cell(slot, "process")) for slot in (0, 1)}
    assert shown == {slot: f"pid {pid}" for slot, pid in site.program.workers().items()}


def test_a_name_of_odd_characters_is_shown_as_it_is(page: Page, site: Site) -> None:
    """Punctuation in a name breaks no selector and no row."""
    page.open(site.url)
    assert ODD in page.names()


def test_the_longest_name_stays_in_its_column(page: Page, site: Site) -> None:
    """It is cut where it is shown, and whole where it is asked for."""
    page.open(site.url)
    name = page.find(f"{cell(LONG, 'forward')} .opener")
    assert name.size["width"] < 300
    assert name.get_attribute("title") == LONG


def test_text_of_the_server_is_never_markup(page: Page, tmp_path: Path) -> None:
    """A configuration file whose path is an HTML element is shown as that path."""
    directory = tmp_path / "<img src=x onerror=document.title=1>&amp;"
    directory.mkdir()
    config = lines({"www": free_port()}, (HOST, free_port())) + METRICS
    with Forwarder(directory, config, log=False) as program:
        page.open(url_of(program))
        assert str(program.config_path) in page.text("#config")
        assert not page.browser.find_elements(By.CSS_SELECTOR, "img")


# Several backends, and datagrams


@pytest.fixture
def spread(forwarder: StartForwarder, backend: StartServer) -> Callable[..., Site]:
    """Call it with two backends' ports (None: one that answers) for a program with one worker that
    spreads `www` over them, and leaves out who has failed once."""

    def start(*backends: int | None, extra: str = "") -> Site:
        ports = {"www": free_port()}
        behind = ",".join(f"{HOST}:{backend(echo).port if port is None else port}" for port in backends)
        options = f"[name=www, health-threshold=1, recovery-timeout=1h{extra}]"
        config = f"{HOST} {ports['www']} {behind} 1 {options}\n{METRICS}"
        return Site(forwarder(config, workers=1), ports)

    return start


StartSpread = Callable[..., Site]

PART = '#forwards tbody[data-name="www tcp"] .part'
"""The line of a backend."""


def test_every_backend_has_a_line(page: Page, spread: StartSpread) -> None:
    """With its connections and its share of all."""
    started = spread(None, None)
    for _ in range(4):
        talk(started.address("www"))
    page.open(started.url)
    page.wait(cell("www", "accepted"), "4")
    assert [text.split(f"{HOST}:")[1][-2:] for text in page.texts(f"{PART} th")] == ["up", "up"]
    assert page.texts(f'{PART} [data-column="accepted"] .value') == ["2", "2"]
    assert page.texts(f'{PART} [data-column="connections"] .value') == [f"50{NARROW}% of all"] * 2


def test_one_backend_has_no_line_of_its_own(page: Page, site: Site) -> None:
    """The forward's own says it all."""
    page.open(site.url)
    assert page.texts("#forwards .part") == []


def test_a_backend_that_is_left_out_is_said(page: Page, spread: StartSpread) -> None:
    """In its line, in the forward's, and above, each in words."""
    gone = free_port()
    started = spread(gone, None)
    talk(started.address("www"))
    page.open(started.url)
    assert page.text(f"{PART} .badge") == "left out"
    assert page.text(f"{cell('www', 'forward')} .badge") == "1 of 2 backends left out"
    assert page.text("#warnings .warn") == f"Left out of the backends of www: {HOST}:{gone}."


def test_no_backend_left_is_an_alarm(page: Page, spread: StartSpread) -> None:
    """It is more than the sum of the warnings, and takes their place."""
    started = spread(free_port(), free_port())
    with connect(started.address("www")) as client:
        assert read_to_end(client).data == b""
    page.open(started.url)
    assert page.texts("#warnings li") == [
        "All backends of www are left out; every one is tried all the same."
    ]
    assert page.text(f"{cell('www', 'forward')} .badge") == "all 2 backends left out"


def test_a_reload_takes_a_backend_s_line_away(page: Page, spread: StartSpread) -> None:
    """A forward with a single backend again has none."""
    started = spread(None, None)
    page.open(started.url)
    assert len(page.texts(PART)) == 2
    listen = started.ports["www"]
    port = started.url.rsplit(":", 1)[1].strip("/")
    started.program.reload(f"{HOST} {listen} {HOST} 9 [name=www]\nmetrics {HOST}:{port}\n")
    until(lambda: page.texts(PART) == [], what="no line of a backend")


@pytest.fixture
def flows(forwarder: StartForwarder) -> Iterator[Site]:
    """A program with one worker, and `dns`, which has room for one flow."""
    ports = {"dns": free_port()}
    with UdpBackend() as behind:
        config = (
            f"{HOST} {ports['dns']}/udp {HOST} {behind.port}/udp [name=dns]\nmax-udp-connections 1\n{METRICS}"
        )
        yield Site(forwarder(config, workers=1), ports)


def dns_cell(column: str) -> str:
    """Selects a cell of `dns`."""
    return f'#forwards tbody[data-name="dns udp"] [data-column="{column}"]'


def test_datagrams_show_per_second(page: Page, flows: Site) -> None:
    """Below the bytes per second, and how many there were in the title."""
    page.open(flows.url)
    assert page.text(f"{dns_cell('failures')} .more") == "0 lost"
    with udp_client(flows.address("dns")) as client:

        def seen() -> bool:
            ask(client, b"x")
            return re.match(r"[1-9].* dgram/s", page.text(f"{dns_cell('sent')} .more")) is not None

        until(seen, 15, "datagrams per second")
    assert "since the start" in str(page.find(dns_cell("sent")).get_attribute("title"))


def test_datagrams_have_details(page: Page, flows: Site) -> None:
    """Where they were lost, if they were."""
    with udp_client(flows.address("dns")) as client:
        ask(client, b"x")
    page.open(flows.url)
    page.find(f"{dns_cell('forward')} .opener").send_keys(Keys.ENTER)
    page.wait("#forwards .details", "from clients1to clients1lost in the listener's queue0")


def test_evicted_flows_are_news(page: Page, flows: Site) -> None:
    """While more clients come than there is room for; not because there once were."""
    for _ in range(2):
        with udp_client(flows.address("dns")) as client:
            ask(client, b"x")
    page.open(flows.url)
    assert page.texts("#warnings li") == []
    with udp_client(flows.address("dns")) as client:
        ask(client, b"x")
    page.wait("#warnings .warn", "Flows of dns are evicted: more clients than max-udp-connections.")


# What one can do with it


def test_a_column_head_sorts(page: Page, site: Site) -> None:
    """The forward with most connections comes to the top, and the head says so to a screen reader."""
    page.open(site.url)
    page.find('#forwards th[data-column="accepted"] button').click()
    page.find('#forwards th[data-column="accepted"] button').click()
    assert page.names()[-1] == "www"
    assert page.find('#forwards th[data-column="accepted"]').get_attribute("aria-sort") == "ascending"


def test_sorting_keeps_the_focus(page: Page, site: Site) -> None:
    """Who reads by keyboard is not thrown out of the table when rows change places."""
    page.open(site.url)
    page.run("document.querySelector(arguments[0]).focus()", f"{cell(ODD, 'forward')} .opener")
    for _ in range(2):
        page.run("document.querySelector('#forwards th[data-column=accepted] button').click()")
    assert page.names()[-1] == "www"
    assert page.run("return document.activeElement.textContent") == ODD


def test_the_filter_narrows_the_forwards(page: Page, site: Site) -> None:
    """Only what has the typed text in its name or addresses is left."""
    page.open(site.url)
    page.find("#filter").send_keys("SPARE-3")
    assert page.names() == ["spare-3"]


def test_details_open_from_the_keyboard(page: Page, site: Site) -> None:
    """Enter on a name shows every figure of the forward exactly, the outcomes in rinetd's words."""
    page.open(site.url)
    page.find(f"{cell('www', 'forward')} .opener").send_keys(Keys.ENTER)
    assert page.find(f"{cell('www', 'forward')} .opener").get_attribute("aria-expanded") == "true"
    assert "done-remote-closed: client ended first1" in page.text("#forwards .details")


def test_outcomes_have_a_text(page: Page, site: Site) -> None:
    """Who cannot see the bar hears its figures."""
    page.open(site.url)
    spoken = page.text(f"{cell('www', 'outcomes')} .spoken")
    assert spoken.startswith("1 closed: done-local-closed 0, done-remote-closed 1")


def secure_site(forwarder: StartForwarder, backend: StartServer, directory: Path, seconds: float) -> Site:
    """A program whose forward `www` has TLS with its clients, by a certificate that ends so soon."""
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    made = trustme.CA().issue_cert("localhost", not_after=ends)
    file = directory / "www.pem"
    file.write_bytes(made.private_key_and_cert_chain_pem.bytes())
    file.chmod(0o600)
    ports, server = {"www": free_port()}, backend(echo)
    options = f"name=www, tls-accept, cert={file}"
    return Site(forwarder(f"{HOST} {ports['www']} {server.host} {server.port} [{options}]\n{METRICS}"), ports)


def test_tls_is_said_of_a_forward(
    page: Page, forwarder: StartForwarder, backend: StartServer, tmp_path: Path
) -> None:
    """With whom, how many handshakes failed, and when the certificate ends."""
    started = secure_site(forwarder, backend, tmp_path, 90 * 86400 + 60)
    with connect(started.address("www")) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        read_to_end(client)
    page.open(started.url)
    page.wait(f"{cell('www', 'forward')} .badge", "TLS with clients")
    page.wait(cell("www", "failures"), "1 TLS")
    page.find(f"{cell('www', 'forward')} .opener").send_keys(Keys.ENTER)
    details = page.text("#forwards .details")
    assert "failed: not tls1" in details
    assert ", in 90 d" in details
    assert page.text("#warnings") == ""
    assert page.complaints() == []


def test_a_certificate_that_ends_is_an_alarm(
    page: Page, forwarder: StartForwarder, backend: StartServer, tmp_path: Path
) -> None:
    """A warning while it has days or seconds left; then an alarm, in words and beside the name."""
    started = secure_site(forwarder, backend, tmp_path, 8)
    page.open(started.url)
    page.wait("#warnings .warn", f"The certificate {tmp_path}/www.pem of www expires in ")
    page.wait("#warnings .alarm", f"The certificate {tmp_path}/www.pem of www has expired.")
    page.wait(f"{cell('www', 'forward')} .badge.alarm", "certificate has expired")


def now(site: Site) -> float:
    """The time by the program's clock."""
    return float(str(fetch_status(site.url)["time"]))


def asks_nothing(page: Page, site: Site) -> bool:
    """Whether two intervals pass without a request."""
    page.requested()
    began = now(site)
    until(lambda: now(site) > began + 4.5, what="two intervals")
    return page.requested() == []


def test_a_paused_page_asks_nothing(page: Page, site: Site) -> None:
    """The button stops it."""
    page.open(site.url)
    page.find("#pause").click()
    assert asks_nothing(page, site)


def test_a_hidden_page_asks_nothing(page: Page, site: Site) -> None:
    """Nobody looks at a minimised window."""
    page.open(site.url)
    page.browser.minimize_window()
    until(lambda: page.run("return document.hidden"), what="the page is hidden")
    assert asks_nothing(page, site)


def test_resume_shows_what_was_missed(page: Page, start_site: StartSite) -> None:
    """After a pause the page has the figures of now."""
    started = start_site()
    page.open(started.url)
    page.find("#pause").click()
    talk(started.address("www"))
    page.find("#pause").click()
    page.wait(cell("www", "accepted"), "1")


# What it warns of


def test_a_refused_reload_is_striking(page: Page, start_site: StartSite) -> None:
    """The banner says it, in the colours of an alarm."""
    started = start_site()
    page.open(started.url)
    started.program.reload(BROKEN)
    page.wait("#warnings .alarm", "The last reload was refused")


def test_a_good_reload_takes_the_warning_away(page: Page, start_site: StartSite) -> None:
    """What is repaired is not mentioned any longer."""
    started = start_site()
    good = started.program.config_path.read_text()
    started.program.reload(BROKEN)
    page.open(started.url)
    page.wait("#warnings", "The last reload was refused")
    started.program.reload(good)
    until(lambda: not page.texts("#warnings li"), 15, "no warning")


def test_a_replaced_worker_is_news(page: Page, start_site: StartSite) -> None:
    """A worker that was killed leaves a warning and a count by reason."""
    started = start_site()
    page.open(started.url)
    os.kill(started.program.worker(0), signal.SIGKILL)
    page.wait("#warnings", "Worker 0 was replaced")
    assert "signal 1" in page.text(worker_cell(0, "restarts"))


def test_a_removed_forward_is_dimmed_while_it_has_sessions(page: Page, start_site: StartSite) -> None:
    """It stays as long as somebody uses it."""
    started = start_site("www", "old")
    with session(started.address("old")):
        started.program.reload(started.program.config_path.read_text().replace("name=old", "name=new"))
        page.open(started.url)
        assert "removed by a reload" in page.text(cell("old", "forward"))
        assert len(page.texts("#forwards tbody.removed")) == 1


def test_a_removed_forward_without_sessions_is_shown_on_demand(page: Page, start_site: StartSite) -> None:
    """Its counters are kept, behind a switch."""
    started = start_site("www", "old")
    talk(started.address("old"))
    started.program.reload(started.program.config_path.read_text().replace("name=old", "name=new"))
    page.open(started.url)
    until(lambda: "old" not in page.names(), what="the session has ended")
    page.find("#show-removed").click()
    assert "old" in page.names()


# When the exporter is gone


def test_a_stopped_program_is_reported_unreachable(page: Page, start_site: StartSite) -> None:
    """The page says so, and since when."""
    started = start_site()
    page.open(started.url)
    started.program.stop()
    page.wait("#warnings .alarm", "The exporter has been unreachable since")
    assert page.text("#state") == "unreachable"


def test_the_last_figures_stay(page: Page, start_site: StartSite) -> None:
    """An unreachable exporter does not empty the page."""
    started = start_site()
    talk(started.address("www"))
    page.open(started.url)
    page.wait(cell("www", "accepted"), "1")
    started.program.stop()
    page.wait("#state", "unreachable")
    assert page.text(cell("www", "accepted")) == "1"


def test_the_page_recovers_by_itself(page: Page, start_site: StartSite) -> None:
    """A program started again on the same port is found without loading the page again."""
    port = free_port()
    stopped = start_site(port=port)
    page.open(stopped.url)
    page.run("window.opened = true")
    stopped.program.stop()
    page.wait("#state", "unreachable")
    start_site(port=port)
    page.wait("#state", "serving")
    assert page.run("return window.opened") is True


# How it looks


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_body_never_scrolls_sideways(width: int, page: Page, site: Site) -> None:
    """With the longest name, and with its details open."""
    page.open(site.url)
    show_at(page.browser, width)
    page.run("document.querySelector(arguments[0]).click()", f"{cell(LONG, 'forward')} .opener")
    assert page.width() == width


def test_a_phone_sees_every_figure_of_a_row(page: Page, site: Site) -> None:
    """On 360 pixels nothing of a forward is outside the screen."""
    show_at(page.browser, 360)
    page.open(site.url)
    cells = page.browser.find_elements(By.CSS_SELECTOR, '#forwards tbody[data-name="www tcp"] .row > *')
    assert len(cells) == 12
    assert max(found.rect["x"] + found.rect["width"] for found in cells) <= 360


def test_a_phone_sees_every_figure_of_the_details(page: Page, site: Site) -> None:
    """The long words of the outcomes push no figure off the screen."""
    show_at(page.browser, 360)
    page.open(site.url)
    page.run("document.querySelector(arguments[0]).click()", f"{cell('www', 'forward')} .opener")
    figures = page.browser.find_elements(By.CSS_SELECTOR, "#forwards .details dd")
    assert max(found.rect["x"] + found.rect["width"] for found in figures) <= 360


def test_a_phone_sees_every_figure_of_a_backend(page: Page, spread: StartSpread) -> None:
    """What has nothing to say takes no room."""
    show_at(page.browser, 360)
    page.open(spread(None, free_port()).url)
    cells = [
        found
        for found in page.browser.find_elements(By.CSS_SELECTOR, f"{PART}:not(:first-child) > *")
        if found.is_displayed()
    ]
    assert len(cells) == 2 * 6
    assert max(found.rect["x"] + found.rect["width"] for found in cells) <= 360


def test_where_it_leads_is_seen_behind_a_long_path(
    page: Page, forwarder: StartForwarder, tmp_path: Path
) -> None:
    """Of a Unix socket's path the middle goes, and a name that is the address is not said twice."""
    path = tmp_path / ("p" * (100 - len(str(tmp_path))))
    config = f"unix:{path} {HOST} 9 [name=own]\nunix:{path}- {HOST} 9\n{METRICS}"
    show_at(page.browser, 360)
    page.open(url_of(forwarder(config)))
    ways = page.texts("#forwards .way")
    assert re.fullmatch(rf"unix:/.{{8}}…p{{25}} → {HOST}:9", ways[0])
    assert ways[1] == f"→ {HOST}:9"
    assert page.width() == 360


def test_dark_and_light_differ(page: Page, site: Site) -> None:
    """The page follows the reader's system."""
    page.open(site.url)
    light = page.background()
    show_at(page.browser, 1280, scheme="dark")
    assert page.background() != light


def test_the_theme_button_overrides_the_system(page: Page, site: Site) -> None:
    """A click makes a light page dark, and loading it again keeps it so."""
    page.open(site.url)
    light = page.background()
    page.find("#theme").click()
    dark = page.background()
    page.open(site.url)
    kept = page.background()
    page.find("#theme").click()
    assert (dark != light, kept, page.background()) == (True, dark, light)


def test_a_browser_without_storage_can_change_the_theme(page: Page, site: Site) -> None:
    """Where storage is refused the choice holds as long as the page."""
    refuse = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException(); } });"
    added = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    try:
        page.open(site.url)
        light = page.background()
        page.find("#theme").click()
        assert page.background() != light
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_without_scripts_the_page_points_at_the_figures(page: Page, site: Site) -> None:
    """A browser that runs no script gets the addresses of JSON and metrics."""
    page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.browser.get(site.url)
        links = page.browser.find_elements(By.CSS_SELECTOR, "noscript a")
        assert [link.get_attribute("href") for link in links] == [f"{site.url}status", f"{site.url}metrics"]
    finally:
        page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# What it must not do


def exercise(page: Page, site: Site) -> None:
    """Use everything on the page once, and let it ask again."""
    page.open(site.url)
    for selector in ("#theme", "#theme", "#pause", "#pause", f"{cell('www', 'forward')} .opener"):
        page.find(selector).click()
    page.find('#forwards th[data-column="sent"] button').click()
    page.find("#filter").send_keys("w")
    before = page.text("#updated")
    until(lambda: page.text("#updated") != before, 15, "the next answer")


def test_the_console_stays_empty(page: Page, site: Site) -> None:
    """No error, no warning, no violation of the exporter's policy."""
    exercise(page, site)
    assert page.complaints() == []


def test_no_request_leaves_the_origin(page: Page, site: Site) -> None:
    """Everything the browser asks for, it asks the exporter for."""
    exercise(page, site)
    asked = [url for url in page.requested() if not url.startswith("data:")]
    assert site.url in asked
    assert [url for url in asked if not url.startswith(site.url)] == []


def test_the_policy_stops_a_foreign_script(page: Page, site: Site) -> None:
    """A script that somebody managed to put into the page does not run."""
    page.open(site.url)
    page.run(
        "const added = document.createElement('script'); added.textContent = 'window.ran = true';"
        "document.body.append(added);"
    )
    assert page.run("return window.ran ?? false") is False


def test_the_page_has_no_style_or_handler_attributes(page: Page, site: Site) -> None:
    """The policy would refuse them."""
    with urlopen(site.url, timeout=deadline.seconds(10)) as answer:
        markup = re.sub(r"<(script|style)>.*?</\1>", "", answer.read().decode(), flags=re.DOTALL)
    assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", markup)
