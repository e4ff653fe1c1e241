"""What the pages show is what was measured and printed: one JSON of results behind all plots, a session that is real."""

import html
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from ..command import PATHS, ROOT

RESULTS = json.loads((ROOT / "examples/plots/results.json").read_text())
SESSION = ROOT / "examples/recording/session.svg"


def script(path: str) -> ModuleType:
    """A script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_file_of_results_makes_every_plot(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/plots/draw.py", "--out", tmp_path],
        capture_output=True, text=True, env={"PYTHONPATH": PATHS, "PATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (ROOT / "examples/plots").glob("*.png")}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in made)


@pytest.mark.parametrize("key", ["quality", "depth", "positions", "speed"])
def test_every_result_says_how_it_was_measured(key: str) -> None:
    entry = RESULTS[key]
    assert re.match(r"(xlstm-edge|python) ", entry["command"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    assert entry["machine"]["cpu"]
    assert entry["results"]
    assert '"bundle": "/' not in json.dumps(entry)  # names, not the folders of somebody's machine


def shown(number: float, digits: int) -> str:
    return f"{number:.{digits}f}"


def test_the_pages_show_these_results() -> None:
    readme = (ROOT / "README.md").read_text()
    exporters = (ROOT / "exporters/README.md").read_text()
    runtime = (ROOT / "runtime/README.md").read_text()
    positions = RESULTS["positions"]["results"][0]
    assert f"{shown(positions['perplexity'], 2)} in one stream" in readme
    assert f"{shown(positions['window_perplexity'], 2)} in windows of {positions['window']}" in readme
    for row in RESULTS["quality"]["results"]:
        size, kl, change = row["bytes"] / 1e6, row["kl_mean"], row["perplexity_change"]
        cells = f"| {size:.2f} | {change:+.2%} | {kl:.4f} | {row['top1_agreement']:.1%} |"
        assert cells.replace("%", " %") in exporters.replace("**", ""), cells
    by_depth = {row["depth"]: row["latency_ms"]["p50"] for row in RESULTS["depth"]["results"]["depths"]}
    assert f"{by_depth[1000]:.2f} and {by_depth[1_000_000]:.2f} ms" in readme
    for row in RESULTS["speed"]["results"]["rows"]:
        assert f"| {row['ours'] / row['llama.cpp']:.2f} |" in runtime, row


def test_the_recorded_session_is_of_these_commands() -> None:
    text = " ".join(html.unescape("".join(node.itertext())) for node in ElementTree.parse(SESSION).iter())
    recorded = re.sub(r"\s+", " ", text.replace("\xa0", " "))
    for command in script("examples/recording/record.py").COMMANDS:
        assert command.partition(" --")[0] in recorded
    assert "all 5 checks passed" in recorded
    assert "@font-face" not in SESSION.read_text()
    assert "next: xlstm-edge verify" in recorded


@pytest.mark.parametrize(
    ("output", "left"),
    [
        ("a\nb\n", "a\nb"), ("one\r\x1b[2Ktwo\n", "two"), ("x 1\ny 1\x1b[1A\r\x1b[2Kx 2\n\x1b[2Ky 2", "x 2\ny 2"),
        ("\x1b[?25lhidden\x1b[?25h", "hidden"), ("\x1b[2mdim\x1b[22m", "\x1b[2mdim\x1b[22m"),
    ],
)  # fmt: skip
def test_what_is_left_on_a_screen(output: str, left: str) -> None:
    assert script("examples/recording/record.py").screen(output) == left
