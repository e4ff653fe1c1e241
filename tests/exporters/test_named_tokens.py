"""Tokens and flags that only the files beside a tokenizer name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
)

import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.text_assets import read_text_assets

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case
from ..oracles.tokenizers import KINDS, TEXTS

WIDE = BY_NAME["large-wide-vocab"]  # 300 ids


@pytest.fixture
def folder(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A checkpoint of 300 ids, without a tokenizer."""
    shutil.copytree(checkpoint_of(WIDE), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def small(kind: str = "WordPiece") -> Tokenizer:
    """150 tokens and a few."""
    return KINDS[kind]()


def test_a_tokenizer_that_is_larger_by_added_tokens(folder: Path, tmp_path: Path, command: Command) -> None:
    library = small()
    library.add_special_tokens([f"<extra {i}>" for i in range(300 - library.get_vocab_size() + 1)])
    assert library.get_vocab_size() == 301
    library.save(str(folder / "tokenizer.json"))
    assert command("export", folder, "-o", tmp_path / "bundle").code == 0
    model = xr.load(tmp_path / "bundle", threads=1)
    last = library.id_to_token(300)
    assert model.encode("the cat")
    with pytest.raises(xr.InputError, match="id 300, which the model does not have"):
        model.stream(f"the {last}")
    assert_one_sentence(command("run", tmp_path / "bundle", f"the {last}"), 2)
    KINDS["ByteLevel"]().save(str(folder / "tokenizer.json"))  # 330 trained tokens: of another model
    assert_one_sentence(command("export", folder, "-o", tmp_path / "other"), 2)


def test_tokens_that_only_the_files_beside_name(folder: Path, tmp_path: Path, command: Command) -> None:
    """As transformers adds them: ids, stop ids and stop strings."""
    small().save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|halt|>",
        "additional_special_tokens": ["<|im_start|>"],
        "added_tokens_decoder": {"400": {"content": "<tool>", "special": False, "normalized": False}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    result = command("export", folder, "-o", tmp_path / "bundle")
    assert result.code == 0
    assert "<|halt|>" in result.err
    model = xr.load(tmp_path / "bundle", threads=1)
    for text in ("to be<|halt|>or", "<|im_start|>be <tool> or", "plain"):
        expected = oracle(text)["input_ids"]
        assert model.tokenizer.encode(text) == expected, text
    assert oracle.eos_token_id in model.manifest.special_tokens.stop


def side_of(folder: Path, vocab: int = 500) -> tuple[Any, list[str]]:
    """What export reads, and its notes, for a model of that many tokens."""
    notes: list[str] = []
    opened = open_checkpoint(folder)
    return read_text_assets(replace(opened, spec=replace(opened.spec, vocab_size=vocab)), None, notes.append), notes


# Settings of no class of its own, which change flags and tokens all the same.
FLAGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a token with spaces of its own": (
        {"eos_token": {"content": "<tool>", "lstrip": True, "rstrip": True, "__type": "AddedToken"}}, {}
    ),
    "two lists of special tokens": (
        {"additional_special_tokens": ["<new>"]}, {"additional_special_tokens": ["<extra>"], "pad_token": "<pad>"}
    ),
    "a decoder of added tokens": (
        {"added_tokens_decoder": {"330": {"content": "<new>", "special": True, "lstrip": True}}}, {}
    ),
    "a token that is respelt": (
        {"added_tokens_decoder": {"331": {"content": "<tool>", "special": True, "lstrip": True, "rstrip": True}}}, {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_flags_beside_a_tokenizer_are_those_of_transformers(name: str, folder: Path) -> None:
    config, roles = FLAGS[name]
    KINDS["ByteLevel"]().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config))
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    side, _ = side_of(folder)
    for text in [*TEXTS, " <tool> ", "a <new> b<extra> c", "x<tool>y <pad>"]:
        assert side.tokenizer.encode(text) == oracle(text)["input_ids"], text
