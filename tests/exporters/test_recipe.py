"""Recipes: what reproduces an export, and what is refused before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_runtime import InputError

from ..command import Command, assert_nothing_written, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
RNG = np.random.default_rng(0)


BAD_OPTIONS = [
    {"block_size": 48}, {"head_bits": 5}, {"embedding_bits": True}, {"keep": {"blocks.*": 3}}, {"method": "awq"},
    {"keep": ["blocks.*"]}, {"keep": {5: 8}}, {"calibrate": 5}, {"tokenizer": 5}, {"all_logits": "yes"}, {"chunk": True},
    {"block_size": "64"}, {"target_mb": "5"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=str)
def test_bad_quantize_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        Recipe(quantize="int4", **bad)


def test_a_recipe_reproduces_an_export(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    (tmp_path / "text").write_text(" ".join(map(str, RNG.integers(0, 97, 600))))
    (tmp_path / "recipe.toml").write_text(
        'quantize = "int4"\nmethod = "gptq"\ncalibrate = "text"\nblock_size = 32\nhead_bits = 8\n[keep]\n"blocks.0.*" = 8\n'
    )
    checkpoint = checkpoint_of(BY_NAME["lm-mixed"])
    first, second = tmp_path / "first", tmp_path / "second"
    assert command("export", checkpoint, "-o", first, "--recipe", tmp_path / "recipe.toml").code == 0
    words = (
        "--quantize",
        "int4",
        "--method",
        "gptq",
        "--calibrate",
        tmp_path / "text",
        "--group-size",
        32,
    )  # the other name
    assert command("export", checkpoint, "-o", second, *words, "--head-bits", 8, "--keep", "blocks.0.*=8").code == 0
    hashes = [json.loads((p / "manifest.json").read_text())["files"] for p in (first, second)]
    assert hashes[0] == hashes[1]


BAD = {
    "gptq on nothing": ("--quantize", "int4", "--method", "gptq", "--calibrate", "none"),
    "mixed on nothing": ("--quantize", "mixed", "--calibrate", "none"),
    "rounding on a text": ("--quantize", "int4", "--method", "rtn", "--calibrate", "self"),
    "rounding on tokens": ("--quantize", "int8", "--method", "rtn", "--calibration-tokens", "512"),
    "too few tokens": ("--quantize", "int4", "--calibration-tokens", "8"),
    "tokens beyond reason": ("--quantize", "int4", "--calibration-tokens", "99999999"),
    "vectors for a language model": ("--quantize", "int4", "--calibrate", "nowhere.npy"),
    "options without quantize": ("--head-bits", "8"),
    "portable": ("--quantize", "int8", "--target", "portable"),
    "three bits": ("--quantize", "int4", "--head-bits", "3"),
    "odd group": ("--quantize", "int4", "--block-size", "33"),
    "2 bits in blocks of 16": ("--quantize", "int4", "--block-size", "16", "--keep", "blocks.*=2"),
    "pattern": ("--quantize", "int4", "--keep", "blocks.0"),
    "pattern that matches nothing": ("--quantize", "int4", "--keep", "x=8"),
    "target without mixed": ("--quantize", "int4", "--target-mb", "3"),
    "no such text": ("--quantize", "int4", "--method", "gptq", "--calibrate", "nowhere"),
    "no such recipe": ("--recipe", "nowhere.toml"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_quantization_requests(name: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    result = command("export", checkpoint_of(BY_NAME["lm-mixed"]), "-o", tmp_path / "bundle", *BAD[name])
    assert_one_sentence(result, 2)
    assert_nothing_written(tmp_path, set())


FLOAT_BITS = 'quantize = "int4"\n[keep]\n"blocks.0.*" = 8.0'


@pytest.mark.parametrize(
    "text", ["quantise = 'int4'", "chunk = 'many'", "chunk = true", "[", "quantize = 'int3'", FLOAT_BITS]
)
def test_bad_recipes(text: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    result = command(
        "export", checkpoint_of(BY_NAME["lm-mixed"]), "-o", tmp_path / "bundle", "--recipe", tmp_path / "recipe.toml"
    )
    assert_one_sentence(result, 2)
    assert_nothing_written(tmp_path, {"recipe.toml"})
