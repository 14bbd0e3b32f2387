"""A real browser without a window and without a network: headless Chromium, driven by Selenium.

The tests of the status page share one per module; screenshot_status_page takes its
picture with it. It must reach nothing but loopback addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.peers import require_peer

SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # as root, and in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-default-browser-check",
    # It asks nobody for anything: no updates, no field trials, no accounts, no look-ups.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-features=AutofillServerCommunication,MediaRouter,OptimizationHints,Translate",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-pings",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def open_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser that keeps everything it writes in `profile` and logs console and requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = require_peer("chromium")
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(require_peer("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def show_at(browser: webdriver.Chrome, width: int, height: int = 900, scheme: str = "light") -> None:
    """Give the browser a screen, a phone's below 700 pixels, and a system that prefers these colours."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
