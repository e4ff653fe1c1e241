"""Tokenizers and sampling defaults that are none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
TOKENIZERS = [
    {"model": WORDS, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": ["x"]},
    {"model": WORDS | {"vocab": {}}, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    {"model": WORDS | {"vocab": {"a": "b"}}, "pre_tokenizer": {"type": "WhitespaceSplit"}},
]


@pytest.mark.parametrize("document", TOKENIZERS, ids=["added", "empty", "text ids"])
def test_odd_tokenizers(document: Any, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(json.dumps(document))
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)


def test_sampling_defaults_out_of_range(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["hf-plain"]), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "generation_config.json").write_text('{"do_sample": true, "top_p": 7.5}')
    result = command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle")
    assert result.code == 2
    assert "top_p" in result.err
    assert "Traceback" not in result.err
