"""Perplexity by position, against an independent computation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from xlstm_edge.positions import measure_positions, range_ends

from ..command import Command, assert_one_sentence
from ..conftest import SHIPPED

TEXT = SHIPPED / "heldout.txt"


class Counting:
    """A stream whose logits depend on the token and on how many came since the last reset."""

    def __init__(self, tables: NDArray[np.float32]) -> None:
        self._tables, self._seen = tables, 0

    def step(self, token: int) -> NDArray[np.float32]:
        self._seen += 1
        return self._tables[min(self._seen, len(self._tables)) - 1, token]

    def reset(self) -> None:
        self._seen = 0


def test_ranges_double_and_end_with_the_text() -> None:
    assert range_ends(100) == [100]
    assert range_ends(256) == [256]
    assert range_ends(257) == [256, 257]
    assert range_ends(5000) == [256, 512, 1024, 2048, 4096, 5000]


def test_perplexities_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    tables, ids, window = rng.standard_normal((40, 11, 11)).astype(np.float32), rng.integers(0, 11, 701), 100
    found = measure_positions(Counting(tables), Counting(tables), ids, window)
    losses = []
    for seen in (np.arange(700), np.arange(700) % window):
        logits = torch.tensor(tables[np.minimum(seen, 39), ids[:-1]]).double()
        losses.append(functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy())
    assert [(part.first, part.last) for part in found] == [(1, 256), (257, 512), (513, 700)]
    for part in found:
        stream, windows = (float(np.exp(loss[part.first - 1 : part.last].mean())) for loss in losses)
        assert part.perplexity == pytest.approx(stream, rel=1e-9)
        assert part.window_perplexity == pytest.approx(windows, rel=1e-9)


def test_the_shipped_model_by_position(shipped_bundle: Path, command: Command, tmp_path: Path) -> None:
    words = ("eval", shipped_bundle, "--positions", "--text", TEXT, "--tokens", 600, "--threads", 1)
    result: Any = json.loads(command(*words, "--plot", tmp_path / "plot.png", "--json").out)[0]
    assert (result["tokens"], result["window"]) == (600, 256)  # the length of its training
    assert [part["tokens"] for part in result["ranges"]] == [256, 256, 88]
    first, second, _ = result["ranges"]
    assert first["perplexity"] == pytest.approx(first["window_perplexity"])  # nothing was forgotten yet
    assert second["perplexity"] != second["window_perplexity"]
    assert 23 < first["perplexity"] < 24.5
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    table = command(*words, "--window", 128).out
    assert "windows of 128" in table
    assert "257 to 512" in table


@pytest.mark.parametrize(
    "words",
    [
        (), ("--positions", "--against", "{bundle}"), ("--window", "9", "--against", "{bundle}"),
        ("--positions", "--tokens", "100"), ("--positions", "--prefix", "x"),
        ("--positions", "--window", "5000", "--tokens", "4000"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_options_that_do_not_go_together(words: tuple[str, ...], shipped_bundle: Path, command: Command) -> None:
    filled = [word.format(bundle=shipped_bundle) for word in words]
    assert_one_sentence(command("eval", shipped_bundle, "--text", TEXT, *filled), 2)
