"""Tokenizers that would make a text endless are refused; those that people use are not."""

import json
from functools import cache
from typing import Any

import pytest

from xlstm_edge_runtime import BundleError
from xlstm_edge_runtime.tokenizer import HuggingFaceTokenizer
from xlstm_edge_runtime.tokenizer_limits import check_growth

from ..oracles.tokenizers import KINDS


@cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


GREEDY: dict[str, dict[str, Any]] = {
    "replaced in turns": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 8}},
    "replaced everywhere": {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 5000}},
    "begun with much": {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}},
    "sequences in sequences": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}]}] * 3}},
    "decoded to much": {"decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 100}] * 4}},
    "a template of many ids": {"post_processor": {"type": "TemplateProcessing", "pair": [], "single": [
        {"SpecialToken": {"id": "x", "type_id": 0}}] * 1000, "special_tokens": {"x": {"id": "x", "ids": [1] * 1000}}}},
    "templates in a sequence": {"post_processor": {"type": "Sequence", "processors": [
        {"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
         "special_tokens": {"x": {"id": "x", "ids": [1] * 6000}}}] * 2}},
    "a long suffix": {"model": {"type": "BPE", "end_of_word_suffix": "a" * 1000, "vocab": {}, "merges": []}},
    "long words": {"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {}}},
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_a_file_that_would_fill_memory_is_refused(name: str) -> None:
    document = json.loads(_trained("ByteLevel")) | GREEDY[name]
    with pytest.raises(BundleError, match="do not trust"):
        HuggingFaceTokenizer(document)


def test_tokenizers_that_people_use_grow_little() -> None:
    """ALBERT's quotes and spaces, Llama's marks, NFKC."""
    steps = [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"String": "\n"}, "content": "<0x0A>"},
        {"type": "NFKC"},
    ]
    check_growth({"normalizer": {"type": "Sequence", "normalizers": steps}, "decoder": None, "model": {"type": "BPE"}})
