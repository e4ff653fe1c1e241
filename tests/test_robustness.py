"""Inputs that once got through or broke something: each is refused in one sentence, or computed right."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime.manifest import file_entry
from xlstm_edge_runtime.verify import verify_bundle

from .command import Command, assert_nothing_written, assert_one_sentence
from .conftest import BY_NAME, SHIPPED, sequence_for
from .oracles.cases import Case
from .oracles.official import official_step

CheckpointOf = Callable[[Case], Path]
# Biases before the soft cap of 15: 14 comes to 11.0, 75 to 14.999, 200 to what float32 cannot tell from 15.
GATES = [(8, -12), (8, -20), (12, 10), (-12, 3), (14, -3), (75, 75), (75, -75), (-75, 75), (-75, -75), (200, -200)]


@pytest.mark.parametrize("flavour", ["ort", "portable"])
@pytest.mark.parametrize(("igate", "fgate"), GATES)
def test_gates_near_their_caps(
    igate: float, fgate: float, flavour: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Small decays meet large gains: a decay that loses its digits is seen here."""
    case, folder = BY_NAME["b-plain"], tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of(case), folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        for part, value in (("igate_preact.bias", igate), ("fgate_preact.bias", fgate)):
            if name.endswith(part):
                tensor.fill_(value)
    save_file(tensors, folder / "model.safetensors")
    sequence = sequence_for(case, 60)
    expected = official_step(case, folder, sequence, "float64")
    assert expected is not None
    xlstm_edge.export(folder, tmp_path / "bundle", flavour=flavour)
    session = xr.load(tmp_path / "bundle", threads=1).session()
    for token, wanted in zip(sequence, expected, strict=True):
        assert np.abs(session.step(int(token)) - wanted).max() <= 1e-4 * np.ptp(wanted)


def test_a_missing_last_block_is_seen(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["c-plain"]), tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if ".blocks.1." not in n}, weights, {"format": "pt"})
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)
    assert_nothing_written(tmp_path, {"checkpoint"})


@pytest.fixture
def tuned(tmp_path: Path, command: Command) -> Path:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle", quantize="int4")
    assert command("tune", tmp_path / "bundle").code == 0
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_damaged_tuning_is_seen_and_not_used(name: str, tuned: Path, command: Command) -> None:
    expected = np.array(xr.load(tuned, tuned=False).session().prefill(range(90)))
    assert xr.load(tuned).tuning is not None
    path = tuned / "tuned" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert_one_sentence(command("verify", tuned), 1)
    model = xr.load(tuned)
    assert model.tuning is None
    assert np.array_equal(model.session().prefill(range(90)), expected)


def test_a_tuned_graph_that_does_not_open_is_not_used(tuned: Path, command: Command) -> None:
    expected = np.array(xr.load(tuned, tuned=False).session().prefill(range(90)))
    (tuned / "tuned" / "model.onnx").write_bytes(bytes(100))
    record = json.loads((tuned / "tuned" / "tuned.json").read_text())
    record["files"]["model.onnx"] = asdict(file_entry(tuned / "tuned" / "model.onnx"))
    (tuned / "tuned" / "tuned.json").write_text(json.dumps(record))
    model = xr.load(tuned)
    assert model.tuning is None
    assert np.array_equal(model.session().prefill(range(90)), expected)
    assert_one_sentence(command("verify", tuned), 1)


def test_plots_are_refused_before_measuring(tuned: Path, command: Command, tmp_path: Path) -> None:
    for name in ("nodir/x.png", "x.jpg"):
        assert_one_sentence(command("bench", tuned, "--depth", "0", "--plot", tmp_path / name), 2)
        words = ("--against", tuned, "--text", SHIPPED / "heldout.txt", "--plot", tmp_path / name)
        assert_one_sentence(command("eval", tuned, *words), 2)


def test_prompts_that_are_no_text(tuned: Path, command: Command) -> None:
    assert_one_sentence(command("run", tuned, "a\udcff"), 2)
    with pytest.raises(xr.InputError):
        xr.load(tuned).stream(None)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("edit", ["slstm_at: x", "slstm_at: 5", "slstm_at: [{a: 1}]"])
def test_odd_configs(edit: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of(BY_NAME["a1-mixed"]), folder)
    lines = (folder / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("slstm_at"))
    rest = [line for line in lines[start + 1 :] if not line.startswith("- ")]
    (folder / "config.yaml").write_text("\n".join([*lines[:start], edit, *rest]))
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle"), 2)


WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
TOKENIZERS = [
    {"model": WORDS, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": ["x"]},
    {"model": WORDS | {"vocab": {}}, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    {"model": WORDS | {"vocab": {"a": "b"}}, "pre_tokenizer": {"type": "WhitespaceSplit"}},
]


@pytest.mark.parametrize("document", TOKENIZERS, ids=["added", "empty", "text ids"])
def test_odd_tokenizers(document: Any, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(json.dumps(document))
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_data(kind: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["a1-sigmoid"]), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.pt"
    tensors = torch.load(path, weights_only=True)
    name = "token_embedding.weight"
    tensors[name] = tensors[name].to_sparse() if kind == "sparse" else tensors[name].to("meta")
    torch.save(tensors, path)
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)


def test_a_manifest_of_another_width(bundle_of: Callable[[Case, str], Path], tmp_path: Path) -> None:
    shutil.copytree(bundle_of(BY_NAME["a1-mixed"], "ort"), tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["vocab_size"] = 4096
    path.write_text(json.dumps(manifest))
    with pytest.raises(xr.BundleError, match="expected 4096 outputs as in the manifest, came 97"):
        xr.load(tmp_path / "bundle")
    with pytest.raises(xr.VerificationError):
        list(verify_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize(
    "words", [("--method", "gptq"), ("--group-size", "64"), ("--embedding-bits", "8"), ("--head-bits", "0")], ids=str
)
def test_options_without_effect(words: Any, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    model = checkpoint_of(BY_NAME["a1-five-heads"])
    assert_one_sentence(command("export", model, "-o", tmp_path / "bundle", *words), 2)
    stack = checkpoint_of(BY_NAME["a3-mixed"])
    words = ("--quantize", "int8", "--head-bits", "8")
    assert_one_sentence(command("export", stack, "-o", tmp_path / "bundle", *words), 2)
    assert_nothing_written(tmp_path, set())


@pytest.mark.parametrize("bundle", [None, 5, "a" * 5000, "a" * 300, "nul\0byte", b"bytes", [], "\udcff"])
def test_paths_that_are_none(bundle: Any) -> None:
    with pytest.raises(xr.XlstmEdgeError, match=r"expected .*came"):
        xr.load(bundle)


def test_an_exported_bundle_loads_as_it_is(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    bundle = xlstm_edge.export(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "bundle")
    assert np.array_equal(xr.load(bundle).session().step(3), xlstm_edge.load(tmp_path / "bundle").session().step(3))
    assert xlstm_edge.verify(bundle)
    assert xlstm_edge.inspect(bundle)["kind"] == "bundle"


BAD_GENERATIONS: list[dict[str, Any]] = [
    {"stop_ids": 5}, {"banned": 5}, {"logit_bias": [1]}, {"logit_bias": {"a": 1}}, {"stop_ids": ["x"]},
    {"stop_ids": [-1]}, {"stop_ids": [True]},
]  # fmt: skip


def test_generation_options(bundle_of: Callable[[Case, str], Path]) -> None:
    session = xr.load(bundle_of(BY_NAME["a1-mixed"], "ort"), threads=1).session()
    for bad in BAD_GENERATIONS:
        with pytest.raises(xr.InputError):
            session.generate([1], **bad)
    good = {"temperature": np.float32(0.5), "max_tokens": np.int64(3), "stop_ids": [10**9], "min_tokens": 1}
    assert len(list(session.generate([1], **good))) == 4


def test_sampling_defaults_out_of_range(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["c-plain"]), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "generation_config.json").write_text('{"do_sample": true, "top_p": 7.5}')
    result = command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle")
    assert result.code == 2
    assert "top_p" in result.err
    assert "Traceback" not in result.err
