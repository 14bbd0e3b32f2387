"""Pictures of the bench: valid, the same each time, and everybody is in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots
from bench.contenders import CONTENDERS
from bench.results import Result
from tests.unit.measured import TITLES, result

SHAPES = {
    "bars": result("bulk", {("1 flow", name): [1, 2, 3] for name in TITLES}),
    "groups of bars": result(
        "bulk", {(case, name): [1, 2] for case in ("1 flow", "8 flows") for name in TITLES}
    ),
    "lines": result(
        "idle",
        {(f"{n} idle", name): [n * 1.0, n * 2.0] for n in (1000, 4000, 8000) for name in TITLES},
        variable="idle connections",
    ),
    "ratios": result(
        "logging",
        {(case, name): [3, 2] for case in ("off", "tab") for name in TITLES},
        without={"tab": "off"},
    ),
    "one round": result("bulk", {("1 flow", "rinetd"): [1]}),
    "a stranger": result("bulk", {("1 flow", "rinetd"): [1]}),
    "all zero": result("reload", {("1 flow", "rinetd"): [0, 0]}),
    "no line": result("idle", {(f"{n} idle", "rinetd"): [] for n in (1, 2, 3)}, variable="idle connections"),
    "nothing": result("bulk", {("1 flow", "rinetd"): []}),
}
SHAPES["a stranger"].contenders = {"rinetd": "C rinetd", "stranger-3": "A stranger"}


def words(path: Path) -> str:
    """The text in an SVG, which must be valid XML."""
    return "\n".join(ElementTree.parse(path).getroot().itertext())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_result_is_drawn(tmp_path: Path, shape: Result) -> None:
    path = plots.draw(shape, tmp_path)
    assert path == tmp_path / f"{shape.scenario}.svg"
    assert shape.title in words(path)


@pytest.mark.parametrize("shape", ["groups of bars", "lines", "ratios"])
def test_the_same_result_gives_the_same_bytes(tmp_path: Path, shape: str) -> None:
    """A new measurement, and nothing else, changes the file."""
    first = plots.draw(SHAPES[shape], tmp_path).read_bytes()
    assert plots.draw(SHAPES[shape], tmp_path).read_bytes() == first


@pytest.mark.parametrize("shape", ["bars", "groups of bars", "lines", "ratios"])
def test_every_contender_is_named(tmp_path: Path, shape: str) -> None:
    said = words(plots.draw(SHAPES[shape], tmp_path))
    assert [title for title in TITLES.values() if title not in said] == []


def test_axes_have_units(tmp_path: Path) -> None:
    assert "1/s, more is better" in words(plots.draw(SHAPES["bars"], tmp_path))


def test_ratios_say_what_they_are_to(tmp_path: Path) -> None:
    assert "ratio to off, more is better" in words(plots.draw(SHAPES["ratios"], tmp_path))


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_name_says_kind_and_threads(name: str) -> None:
    """Pictures read a contender's name, because results have nothing else."""
    assert plots.threads(name) == (CONTENDERS[name].threads or 1)
    assert plots.kind(name) in plots.COLOURS


def test_no_two_lines_look_the_same() -> None:
    looks = [str(plots.look(name)) for name in CONTENDERS]
    assert len(set(looks)) == len(looks)
