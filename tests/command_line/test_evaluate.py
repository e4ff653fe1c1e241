"""The quality command against figures computed by hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import xlstm_edge
from xlstm_edge.evaluate import _measure, evaluate
from xlstm_edge_exporters.calibration import read_ids
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_runtime.progress import no_progress

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

TEXT = SHIPPED / "heldout.txt"
TOKENS = 120


@pytest.fixture(scope="module")
def bundles(export_of: Callable[..., Path]) -> dict[str, Path]:
    options: dict[str, dict[str, str]] = {
        "float32": {},
        "int8": {"quantize": "int8"},
        "int4": {"quantize": "int4", "method": "rtn"},
    }
    return {name: export_of("shipped", **chosen) for name, chosen in options.items()}


def test_perplexity_is_the_reference_model_s(bundles: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(SHIPPED)
    ids = read_ids(checkpoint, TEXT)[: TOKENS + 1]
    outputs = run_reference(checkpoint.spec, checkpoint.weights, ids).outputs[:-1]
    log_p = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
    expected = np.exp(-log_p[np.arange(TOKENS), ids[1:]].mean())
    result = evaluate([bundles["float32"]], against=SHIPPED, text=TEXT, tokens=TOKENS, threads=1)[0]
    assert result["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert result["kl_mean"] == pytest.approx(0, abs=1e-9)
    assert result["top1_agreement"] == 1.0
    assert result["tokens"] == TOKENS


class Table:
    """A model whose outputs depend on the last token alone."""

    def __init__(self, seed: int) -> None:
        self.logits = torch.randn(11, 11, generator=torch.Generator().manual_seed(seed)) * 3

    def step(self, token: int) -> np.ndarray[Any, Any]:
        return self.logits[token].numpy()


def test_measures_are_those_of_torch() -> None:
    ids, got, wanted = np.random.default_rng(0).integers(0, 11, 90), Table(1), Table(2)
    result = _measure(got, wanted, ids, no_progress)  # type: ignore[arg-type]  # a session, as far as it is asked
    before, after = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    p, q = (functional.log_softmax(table.logits[before].double(), 1) for table in (got, wanted))
    kl = functional.kl_div(p, q, reduction="none", log_target=True).sum(1)
    delta = (p.exp() - q.exp()).gather(1, after[:, None])[:, 0]
    expected = {
        "perplexity": functional.nll_loss(p, after).exp(),
        "reference_perplexity": functional.nll_loss(q, after).exp(),
        "perplexity_change": (functional.nll_loss(p, after) - functional.nll_loss(q, after)).exp() - 1,
        "kl_mean": kl.mean(),
        "kl_median": kl.quantile(0.5),
        "kl_p99": kl.quantile(0.99),
        "top1_agreement": (p.argmax(1) == q.argmax(1)).double().mean(),
        "delta_p_mean": delta.mean(),
        "delta_p_rms": delta.square().mean().sqrt(),
    }
    percentiles = result.pop("delta_p_percentiles")
    assert result == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    assert percentiles == pytest.approx({q: float(delta.quantile(int(q) / 100)) for q in percentiles}, rel=1e-5)
    assert {"1", "50", "99"} <= percentiles.keys()


def test_fewer_bits_cost_more(bundles: dict[str, Path], command: Command, tmp_path: Path) -> None:
    words = ("--against", bundles["float32"], "--text", TEXT, "--tokens", TOKENS, "--threads", 1)
    result = command("eval", bundles["int8"], bundles["int4"], *words, "--plot", tmp_path / "plot.png", "--json")
    int8, int4 = json.loads(result.out)
    assert 0 < int8["kl_mean"] < 0.1 * int4["kl_mean"]
    assert int8["top1_agreement"] > int4["top1_agreement"] > 0.5
    assert int4["bytes"] < int8["bytes"]
    assert abs(int8["perplexity_change"]) < 0.02
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "perplexity" in command("eval", bundles["int8"], *words).out


def test_bad_requests(bundles: dict[str, Path], command: Command, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("Hi.")
    base = ("eval", bundles["int8"], "--against", bundles["float32"], "--text")
    assert_one_sentence(command(*base, tmp_path / "short"), 2)
    assert_one_sentence(command(*base, tmp_path / "none"), 2)
    os.mkfifo(tmp_path / "pipe")  # nobody writes: reading it would wait for ever
    for endless in (tmp_path / "pipe", "/dev/zero", tmp_path):
        assert_one_sentence(command(*base, endless), 2)
        with pytest.raises(xlstm_edge.XlstmEdgeError):
            read_ids(open_checkpoint(SHIPPED), Path(endless))
    assert_one_sentence(command("eval", tmp_path, "--against", bundles["float32"], "--text", TEXT), 2)
    assert_one_sentence(command("eval", bundles["int8"], "--against", tmp_path / "none", "--text", TEXT), 2)


def test_without_a_tokenizer_it_is_said_before_anything_is_loaded(
    export_of: Callable[..., Path],
    checkpoint_of: Callable[[Case], Path],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what is compared with, of a checkpoint before it is exported; a text of ids is read."""
    bundle, checkpoint = export_of("lm-mixed"), checkpoint_of(BY_NAME["lm-mixed"])
    stack = export_of("stack-slstm")
    (tmp_path / "ids").write_text(" ".join(str(index % 7) for index in range(50)))
    for words in (("--against", bundle), ("--against", checkpoint), ("--positions", "--window", 8)):
        assert command("eval", bundle, "--text", tmp_path / "ids", "--tokens", 40, *words).code == 0
    for place in ("evaluate.load", "positions.load", "facade.export"):
        monkeypatch.setattr(f"xlstm_edge.{place}", lambda *_, **__: pytest.fail("went on"))
    for words in (("--against", bundle), ("--against", checkpoint), ("--positions",)):
        result = command("eval", bundle, "--text", TEXT, *words)
        assert_one_sentence(result, 2)
        assert "has no tokenizer" in result.err
    for words in (("--against", stack), ("--positions",)):
        result = command("eval", stack, "--text", TEXT, *words)
        assert_one_sentence(result, 2)
        assert "got a stack of float vectors" in result.err
