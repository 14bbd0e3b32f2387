"""How long a start takes: from exec to the first accepted connection, and to the first echoed byte.

    bench/startup.py [--runs N]

With a configuration of ten forwards; C rinetd beside it if it is installed. Prints medians.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import FORWARDERS, HOST, PATIENCE, ROOT, free_port

FORWARDS = 10
PROGRAMS = ("fastfwd-1", "fastfwd-2", "rinetd")


@contextmanager
def echo() -> Iterator[int]:
    """A backend that echoes, one connection after the other; gives its port."""
    with socket.create_server((HOST, free_port()), backlog=128) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        while data := connection.recv(1024):
                            connection.sendall(data)
                    except ConnectionError:
                        pass  # the forwarder was stopped

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def once(command: list[str | Path], port: int) -> tuple[float, float]:
    """Start `command` and stop it again: seconds to an accepted connection, and to an echo through it."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                client = socket.create_connection((HOST, port), PATIENCE)
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.perf_counter() > begin + PATIENCE:
                    raise RuntimeError(f"{command[0]} does not start") from None
                time.sleep(0.0002)
        listening = time.perf_counter() - begin
        with client:
            client.sendall(b"x")
            client.recv(1)
            return listening, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait(PATIENCE)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description="Measure the time of a start.")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="starts of each (default 20)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="startup-") as text, echo() as target:
        commands = {}
        for name in PROGRAMS:
            directory = Path(text) / name
            directory.mkdir()
            ports = [free_port() for _ in range(FORWARDS)]
            command = FORWARDERS[name](directory, dict.fromkeys(ports, target))
            if command is not None:
                commands[name] = command, ports[-1]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, (command, port) in commands.items():
                times[name].append(once(command, port))
    print(f"{'':12}{'listening':>12}{'first echo':>12}   (median of {runs}, ms, {FORWARDS} forwards)")
    for name, measured in times.items():
        listening, echoed = (statistics.median(column) * 1000 for column in zip(*measured, strict=True))
        print(f"{name:12}{listening:12.1f}{echoed:12.1f}")


if __name__ == "__main__":
    main()
