"""`make run`: a small web server behind fastfwd, and what to try with the two.

Starts a backend in this process and fastfwd as a child, in the foreground, on a copy of
demo.conf in a temporary directory; says where to look; stops both and removes the
directory on Ctrl-C. Knows nothing of the program but its command line.

Environment: DEMO_PORT, the port fastfwd listens on (default 8080); the backend takes the next one,
the status page the one after that.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

import psutil

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_LIMIT = 15.0  # seconds until the first answer; a slow machine needs a few
STOP_LIMIT = 10.0  # seconds for fastfwd to end after TERM

THROUGH = "You see this page through fastfwd"
DIRECT = "You see this page directly, not through fastfwd"


class Backend(ThreadingHTTPServer):
    """The web server that fastfwd forwards to."""

    daemon_threads = True

    def __init__(self, listen: int, port: int) -> None:
        self.listen = listen
        self.stopping = False
        self.page = (HERE / "index.html").read_text(encoding="utf-8")
        super().__init__((HOST, port), Answer)

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor who left in the middle is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Answer(BaseHTTPRequestHandler):
    """One request: the page at `/`, one line a second without end at `/clock`.

    HTTP/1.0, so every request is a connection of its own and shows in the log.
    """

    server: Backend

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_page()
        elif self.path == "/clock":
            self.send_clock()
        else:
            self.send_error(404)

    def send_page(self) -> None:
        backend = self.server.server_address[1]
        direct = self.headers.get("Host", "").endswith(f":{backend}")
        peer = f"{self.client_address[0]}:{self.client_address[1]}"
        page = self.server.page
        for mark, text in (
            ("{heading}", DIRECT if direct else THROUGH),
            ("{listen}", f"{HOST}:{self.server.listen}"),
            ("{backend}", f"{HOST}:{backend}"),
            ("{config}", f"{HOST} {self.server.listen}  {HOST} {backend}  [name=demo]"),
            ("{peer}", peer),
        ):
            page = page.replace(mark, text)
        body = page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def send_clock(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(b"retry: 500\n\n")
        while not self.server.stopping:
            self.wfile.write(time.strftime("data: %H:%M:%S\n\n").encode())
            time.sleep(1)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing: the terminal belongs to fastfwd's messages."""


def fail(text: str) -> int:
    print(f"demo: {text}", file=sys.stderr)
    return 1


def chosen_port() -> int:
    """DEMO_PORT as a number; ValueError if there is no room for it and the next two."""
    text = os.environ.get("DEMO_PORT", "8080")
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= port < 65534:
        raise ValueError(f"DEMO_PORT must be a number from 1 to 65533, not {text!r}")
    return port


def require_free(port: int) -> None:
    """Raise OSError if somebody listens on `port`.

    fastfwd's own sockets have SO_REUSEPORT, so two demonstrations of one user could
    share the port and answer for each other; a plain socket finds the first one.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))


def write_configuration(run: Path, listen: int, backend: int) -> tuple[Path, Path]:
    """Copy demo.conf into `run` with its ports and log file; return the copy and the log."""
    conf, log = run / "demo.conf", run / "fastfwd-demo.log"
    text = (HERE / "demo.conf").read_text(encoding="utf-8")
    for old, new in (
        (f"{HOST} 8080", f"{HOST} {listen}"),
        (f"{HOST} 8081", f"{HOST} {backend}"),
        ("logfile fastfwd-demo.log", f"logfile {log}"),
        (f"metrics {HOST}:9464", f"metrics {HOST}:{backend + 1}"),
    ):
        assert old in text, f"demo.conf has no {old!r}"
        text = text.replace(old, new)
    conf.write_text(text, encoding="utf-8")
    return conf, log


def answers(port: int) -> bool:
    """Whether the page can be had at `port`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{port}/", timeout=2) as reply:
            return THROUGH.encode() in reply.read()
    except (urllib.error.URLError, OSError):
        return False


def guide(listen: int, backend: int, supervisor: int, conf: Path, log: Path) -> str:
    """What the terminal says once everything runs."""
    url = f"http://{HOST}:{listen}/"
    children = psutil.Process(supervisor).children()
    workers = [child.pid for child in children if child.name().startswith("fastfwd-w")]
    victim = workers[0] if workers else supervisor
    lines = [
        ("Look", f"open {url} or: curl {url}"),
        ("Hold on", f"curl -N {url}clock"),
        ("", "one session, a line a second, until you end it"),
        ("Watch", f"open http://{HOST}:{backend + 1}/ or: {sys.executable} -m fastfwd --status -c {conf}"),
        ("The log", f"tail -f {log}"),
        ("Reload", f"edit {conf}, then: kill -HUP {supervisor}"),
        ("", "new rules are for new connections; the open session stays"),
        ("A mistake", "put nonsense into that file and send the HUP again"),
        ("", "it is refused with its line number, and everything goes on as before"),
        ("A crash", f"kill -9 {victim}"),
        ("", "a worker dies and is replaced at once; only its own sessions end"),
        ("Stop", "Ctrl-C here"),
    ]
    return (
        f"\nfastfwd forwards {HOST}:{listen} to a small web server on {HOST}:{backend}.\n"
        f"Process {supervisor} is the supervisor; workers: {' '.join(map(str, workers))}.\n\n"
        + "".join(f"  {what:<11}{how}\n" for what, how in lines)
    )


def main() -> int:
    stopping: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)

    try:
        listen = chosen_port()
    except ValueError as error:
        return fail(str(error))
    port = listen
    try:
        require_free(listen)
        port = listen + 2
        require_free(port)
        port = listen + 1
        backend = Backend(listen, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = 18080 if listen != 18080 else 28080
            return fail(
                f"port {port} is in use. The demo needs three free ports in a row; choose them with\n"
                f"      DEMO_PORT={other} make run"
            )
        return fail(f"cannot listen on port {port}: {error.strerror}")

    threading.Thread(target=backend.serve_forever, daemon=True).start()
    run = Path(tempfile.mkdtemp(prefix="fastfwd-demo-"))
    try:
        return run_fastfwd(run, listen, port, stopping)
    finally:
        backend.stopping = True
        backend.shutdown()
        backend.server_close()
        shutil.rmtree(run, ignore_errors=True)


def run_fastfwd(run: Path, listen: int, backend: int, stopping: list[int]) -> int:
    """Start fastfwd, guide the visitor, and end it when a signal number is in `stopping`."""
    conf, log = write_configuration(run, listen, backend)
    # Its own process group: Ctrl-C reaches only this program, which then sends one TERM.
    child = subprocess.Popen(
        [sys.executable, "-m", "fastfwd", "-f", "-c", str(conf)],
        cwd=HERE.parent.parent,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        deadline = time.monotonic() + START_LIMIT
        while not stopping and child.poll() is None and not answers(listen):
            if time.monotonic() > deadline:
                return fail(f"fastfwd did not answer on port {listen} within {START_LIMIT:.0f} s")
            time.sleep(0.05)
        if not stopping and child.poll() is None:
            print(guide(listen, backend, child.pid, conf, log), flush=True)
        while not stopping and child.poll() is None:
            time.sleep(0.1)
        if not stopping:
            return fail(f"fastfwd ended by itself with status {child.returncode}; its messages are above")
        print("\nstopping", flush=True)
        return 0
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """TERM, and KILL to the whole group if that is not obeyed in STOP_LIMIT seconds."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        fail(f"fastfwd did not stop within {STOP_LIMIT:.0f} s; killing it")
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
