"""A bundle against its checkpoint: everything that came from there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize.read import read_schemes, read_weights

from ..changed_bundles import change_tensor, edit_json, on, one_step_up, rehash, swapped, tensors
from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


Change = Callable[[Path], object]
SHIPPED_TOO: dict[str, Change] = {
    "two scales of a column swapped": on("mixer.down.weight.scales", swapped((1, 1), (2, 1)), 2),
    "two groups swapped": on("mixer.up.weight.data", swapped((5, 0), (5, 1)), 3),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up),
    "another layer": lambda f: change_tensor(f, tensors(f, "mixer.down.weight.scales")[1], lambda a: a[::-1]),
    "a bias of zeros": on("mixer.gates.bias", np.zeros_like),
}


# Against the checkpoint


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "family": lambda m: m.update(family="xlstm_large"),
    "source": lambda m: m["source"].update(sha256="0" * 64),
    "parameters": lambda m: m["model"].update(parameters=1),
    "context length": lambda m: m["model"].update(context_length=7),
    "tied": lambda m: m["model"].update(tied=not m["model"]["tied"]),
    "kinds of blocks": lambda m: m["model"].update(blocks=["slstm"] * 6),
    "opset": lambda m: m["graph"].update(opset=17),
    "bos": lambda m: m["special_tokens"].update(bos=3),
    "add_bos": lambda m: m["special_tokens"].update(add_bos=not m["special_tokens"]["add_bos"]),
    "pad": lambda m: m["special_tokens"].update(pad=5),
    "stop": lambda m: m["special_tokens"].update(stop=[9]),
    "sampling": lambda m: m.update(sampling={"temperature": 0.3}),
    "older onnxruntime": lambda m: m["minimum_runtime"].update(onnxruntime="1.2"),
    "bits": lambda m: next(iter(m["quantization"]["tensors"].values())).update(bits=8),
    "initial state": lambda m: m["state"]["tensors"][0].update(initial=0.5),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_that_is_not_the_checkpoint_s(
    name: str, int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle"))
    edit_json(bundle / "manifest.json", FORGED[name])
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def test_a_tokenizer_that_is_not_the_checkpoint_s(
    int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    assert command("verify", int4_bundle("shipped"), "--against", SHIPPED).code == 0
    bundle = Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle"))
    text = (bundle / "tokenizer.json").read_text()
    (bundle / "tokenizer.json").write_text(text + "\n")
    rehash(bundle)
    assert command("verify", bundle).code == 0
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def with_new_vectors(folder: Path) -> None:
    """Vectors of the changed weights: a forger's, who has the exporter."""
    from xlstm_edge_exporters.vectors import make_vectors, vectors_json

    graph, spec = folder / "model.onnx", open_checkpoint(SHIPPED).spec
    groups = {name: scheme.block_size for name, scheme in read_schemes(graph).items()}
    (folder / "vectors.json").write_text(vectors_json(make_vectors(spec, read_weights(graph), groups, chunk=64)))
    rehash(folder)


@pytest.mark.parametrize("name", SHIPPED_TOO)
def test_changed_weights_with_vectors_of_their_own(
    name: str, int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle"))
    SHIPPED_TOO[name](bundle)
    with_new_vectors(bundle)
    assert command("verify", bundle).code == 0
    result = command("verify", bundle, "--against", SHIPPED)
    assert_one_sentence(result, 1)
    assert "weight" in result.err or "bias" in result.err


@pytest.mark.parametrize(
    "options",
    [{"quantize": "int8"}, {"quantize": "int4", "method": "rtn", "block_size": 16, "keep": {"blocks.1.*": 8}},
     {"quantize": "int4", "method": "rtn", "keep": {"blocks.*": 2}}],
    ids=str,
)  # fmt: skip
def test_healthy_exports_hold_against_their_checkpoint(options: dict[str, Any], export_of: Callable[..., Path]) -> None:
    names = [check.name for check in xlstm_edge.verify(export_of("shipped", **options), against=SHIPPED)]
    assert {"tensors", "reference, step", "reference, chunk", "reference, weights"} <= set(names)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_model_calibrated_on_next_to_nothing_holds(
    bits: int, checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(" ".join(map(str, np.random.default_rng(1).integers(0, 3, 300))))
    checkpoint = checkpoint_of(BY_NAME["lm-mixed"])
    options: dict[str, Any] = {
        "quantize": "int4",
        "calibrate": tmp_path / "text",
        "block_size": 32,
        "keep": {"*": bits},
    }
    xlstm_edge.export(checkpoint, tmp_path / "bundle", **options)
    assert any(check.name == "tensors" for check in xlstm_edge.verify(tmp_path / "bundle", against=checkpoint))
