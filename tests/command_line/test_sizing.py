"""What an export will be, from names and shapes alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import xlstm_edge
from xlstm_edge.sizing import DEVICES, parse_bandwidth
from xlstm_edge_runtime import InputError
from xlstm_edge_runtime.manifest import read_manifest

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

# The config.json of the published 7B model, as far as it describes the model.
SEVEN_BILLION = {
    "architectures": ["xLSTMForCausalLM"], "model_type": "xlstm", "embedding_dim": 4096, "num_heads": 8, "num_blocks": 32,
    "vocab_size": 50304, "use_bias": False, "norm_eps": 1e-6, "add_out_norm": True, "qk_dim_factor": 0.5, "v_dim_factor": 1.0,
    "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64, "gate_soft_cap": 15.0, "output_logit_soft_cap": 30.0,
    "weight_mode": "single", "tie_word_embeddings": False, "force_bos_token_insert": True, "torch_dtype": "float32",
    "chunkwise_kernel": "chunkwise--triton_xl_chunk", "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def test_the_published_7b_from_its_config_alone(tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_BILLION))
    for path in (tmp_path, tmp_path / "config.json"):
        facts = json.loads(command("plan", path, "--bandwidth", "21GB/s", "--json").out)
        assert facts["parameters"] == 6_865_424_896
        assert facts["state_bytes"] == 4 * 32 * 8 * (256 * 512 + 256)
        assert facts["bytes"]["float32"] == pytest.approx(4 * 6_865_424_896, rel=1e-4)
        assert 4.1 < 8 * facts["bytes"]["int4"] / facts["parameters"] < 4.6
        read = facts["bytes"]["int4"] + 2 * facts["state_bytes"]
        assert facts["tokens_per_second"]["int4"] == pytest.approx(21e9 / read, rel=0.05)
        assert facts["export"]["memory_rounded"] < 4e9
        assert facts["bytes"]["int4"] < facts["export"]["memory"] < 2 * facts["bytes"]["int4"]
    assert "6,865,424,896 parameters" in command("plan", tmp_path, "--device", "laptop").out


@pytest.mark.parametrize("options", [{}, {"quantize": "int8"}, {"quantize": "int4", "calibration_tokens": 1024}])
def test_a_plan_says_the_bytes_of_the_bundle(options: dict[str, object], export_of: Callable[..., Path]) -> None:
    facts, manifest = xlstm_edge.plan(SHIPPED, device="pi5"), read_manifest(export_of("shipped", **options))
    stored = manifest.files["model.onnx.data"].bytes
    planned = facts["bytes"][options.get("quantize", "float32")]
    assert stored <= planned + 4096 * 40  # tensors begin at whole pages
    assert planned <= 1.03 * stored
    assert facts["parameters"] == manifest.model.parameters
    assert facts["state_bytes"] == manifest.state.nbytes


def test_chips_without_integer_dot_products_are_told_so(command: Command) -> None:
    for name, device in DEVICES.items():
        facts = json.loads(command("plan", SHIPPED, "--device", name, "--json").out)
        assert facts["bandwidth"] == device.bandwidth
        slow, rates = name in ("zero2", "pi3", "pi4"), facts["tokens_per_second"]
        assert any("float weights" in line for line in facts["advice"]) == slow
        assert (rates["int4"] == rates["float32"]) == slow  # what tune would open, not what the bytes promise


@pytest.mark.parametrize(
    "words", [("--bandwidth", "fast"), ("--bandwidth", "0"), ("--bandwidth", "-3"), ("--device", "toaster"),
              ("--device", "pi5", "--bandwidth", "3")], ids=str,
)  # fmt: skip
def test_bad_requests(words: tuple[str, ...], command: Command) -> None:
    assert_one_sentence(command("plan", SHIPPED, *words), 2)


@pytest.mark.parametrize("text", ["25GB/s", "25 GB/s", "25gb", "25", "25.0"])
def test_bandwidths(text: str) -> None:
    assert parse_bandwidth(text) == 25e9
    with pytest.raises(InputError, match="bandwidth"):
        parse_bandwidth(text + "x")


BAD_CONFIGS = {
    "no such key": {**SEVEN_BILLION, "rotary": True},
    "a width of text": {**SEVEN_BILLION, "embedding_dim": "wide"},
    "a width beyond reason": {**SEVEN_BILLION, "embedding_dim": 10**9},
    "blocks beyond reason": {**SEVEN_BILLION, "num_blocks": 10**7},
    "blocks of none": {**SEVEN_BILLION, "num_blocks": 0},
    "heads that do not divide": {**SEVEN_BILLION, "num_heads": 7},
    "a factor of nothing": {**SEVEN_BILLION, "ffn_proj_factor": 0},
    "sLSTM beyond the blocks": {
        "mlstm_block": {},
        "slstm_block": {},
        "slstm_at": [9],
        "num_blocks": 2,
        "vocab_size": 5,
    },
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs(name: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BAD_CONFIGS[name]))
    assert_one_sentence(command("plan", tmp_path), 2)


def test_nothing_to_plan(tmp_path: Path, command: Command) -> None:
    assert_one_sentence(command("plan", tmp_path), 2)
    assert_one_sentence(command("plan", tmp_path / "nowhere"), 2)


def test_a_plan_is_the_plan_of_the_export(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """The same from the config alone as from the checkpoint."""
    folder = checkpoint_of(BY_NAME["hf-tied"])
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "config.json", alone)
    assert xlstm_edge.plan(alone, device="pi5") == xlstm_edge.plan(folder, device="pi5")
