"""What happened: the shared scoreboard, the connection log, and the exporter that shows them."""

from pathlib import Path
from typing import Final

PAGE: Final = str(Path(__file__).with_name("page.html"))
"""The status page's file."""
