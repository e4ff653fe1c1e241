"""What is written into a manifest is what is read from it: every member, and the limits of each."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from xlstm_edge_runtime import BundleError
from xlstm_edge_runtime.manifest import Dimensions, FileEntry, GraphInfo, Manifest, SpecialTokens, TokenizerInfo
from xlstm_edge_runtime.manifest_sections import (
    MOST_AXES,
    MOST_BLOCKS,
    MOST_FILES,
    MOST_STOPS,
    Quantization,
    TensorQuantization,
)
from xlstm_edge_runtime.state import StateSpec, StateTable

HASHES = ["ab" * 32, "cd" * 32, "0123456789abcdef" * 4, "ef" * 32]
NAMES = ["model.onnx", "model.onnx.data", "vectors.json", "tokenizer.json"]
# No member is what a reader would take for a missing one.
FULL = Manifest(
    family="xlstm_large",
    producer="xlstm-edge 0.1.0",
    onnxruntime="1.26",
    source="12" * 32,
    model=Dimensions(
        width=48, vocab_size=300, blocks=("mlstm", "slstm"), parameters=12_345, tied=True, context_length=77
    ),
    graph=GraphInfo(
        file="model.onnx", target="portable", opset=17, input="ids", output="scores", chunk=33, all_logits=True
    ),
    tokenizer=TokenizerInfo(kind="huggingface", file="tokenizer.json"),
    special_tokens=SpecialTokens(bos=1, pad=2, stop=(3, 299), add_bos=True),
    state=StateTable([StateSpec("blocks.0.C", (4, 3, 6), 0.0, 2), StateSpec("blocks.0.n", (4, 3, 1))]),
    files={name: FileEntry(100 + i, sha) for i, (name, sha) in enumerate(zip(NAMES, HASHES, strict=True))},
    sampling={"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.1},
    quantization=Quantization(
        {
            "target": "cpu", "chunk": 33, "all_logits": True, "quantize": "mixed", "method": "gptq", "calibrate": "a.txt",
            "block_size": 64, "embedding_bits": 8, "head_bits": 8, "target_mb": 1.5, "target_bpw": 4, "keep": {"a.*": 32},
        },
        {"a": TensorQuantization(2, 256), "b": TensorQuantization(8, 16)},
    ),
)  # fmt: skip


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(FULL.to_json())
    change(document)
    return json.dumps(document)


def test_every_member_survives_the_file() -> None:
    again = Manifest.from_json(FULL.to_json())
    for member in dataclasses.fields(Manifest):
        assert getattr(again, member.name) == getattr(FULL, member.name), member.name
    assert again == FULL
    assert again.state.nbytes == 4 * (4 * 3 * 6 + 4 * 3)


def test_what_may_be_nothing_may_be_nothing() -> None:
    empty = dataclasses.replace(
        FULL,
        model=dataclasses.replace(FULL.model, vocab_size=None, context_length=None, tied=False),
        tokenizer=TokenizerInfo(kind="none"),
        special_tokens=SpecialTokens(),
        sampling={},
        quantization=Quantization(),
    )
    assert Manifest.from_json(empty.to_json()) == empty


def state(document: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = document["state"]["tensors"][0]
    return row


ACCEPTED: dict[str, Callable[[dict[str, Any]], object]] = {
    "the last id as stop": lambda d: d["special_tokens"].update(stop=[299]),
    "the first id as bos and pad": lambda d: d["special_tokens"].update(bos=0, pad=0),
    "the last id as bos and pad": lambda d: d["special_tokens"].update(bos=299, pad=299),
    "as many stop ids as may be": lambda d: d["special_tokens"].update(stop=[1] * MOST_STOPS),
    "as many blocks as may be": lambda d: d["model"].update(blocks=["mlstm"] * MOST_BLOCKS),
    "no blocks": lambda d: d["model"].update(blocks=[]),
    "one token a call": lambda d: d["graph"].update(chunk=1),
    "as many tokens a call as may be": lambda d: d["graph"].update(chunk=4096),
    "a vocabulary of one": lambda d: (
        d["model"].update(vocab_size=1), d["special_tokens"].update(bos=0, pad=0, stop=[0]),
    ),
    "a width of one": lambda d: d["model"].update(width=1),
    "a context of one": lambda d: d["model"].update(context_length=1),
    "no parameters": lambda d: d["model"].update(parameters=0),
    "a file without a byte": lambda d: d["files"]["vectors.json"].update(bytes=0),
    "as many files as may be": lambda d: d["files"].update(
        {f"f{i}": d["files"]["model.onnx"] for i in range(MOST_FILES - len(NAMES))}
    ),
    "a long file name": lambda d: d["files"].update({"x" * 128: d["files"]["model.onnx"]}),
    "a tokenizer of words": lambda d: d.update(family="x" * 100),
}  # fmt: skip
REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a stop id beyond the last": lambda d: d["special_tokens"].update(stop=[300]),
    "a bos beyond the last": lambda d: d["special_tokens"].update(bos=300),
    "a pad beyond the last": lambda d: d["special_tokens"].update(pad=300),
    "a stop id below the first": lambda d: d["special_tokens"].update(stop=[-1]),
    "a bos below the first": lambda d: d["special_tokens"].update(bos=-1),
    "a pad below the first": lambda d: d["special_tokens"].update(pad=-1),
    "an id of a stack of vectors": lambda d: (
        d["model"].update(vocab_size=None), d["special_tokens"].update(bos=None, pad=None, stop=[0]),
    ),
    "a stop id too many": lambda d: d["special_tokens"].update(stop=[1] * (MOST_STOPS + 1)),
    "a block too many": lambda d: d["model"].update(blocks=["mlstm"] * (MOST_BLOCKS + 1)),
    "no token a call": lambda d: d["graph"].update(chunk=0),
    "a token a call too many": lambda d: d["graph"].update(chunk=4097),
    "no vocabulary": lambda d: d["model"].update(vocab_size=0),
    "no width": lambda d: d["model"].update(width=0),
    "no context": lambda d: d["model"].update(context_length=0),
    "fewer parameters than none": lambda d: d["model"].update(parameters=-1),
    "no opset": lambda d: d["graph"].update(opset=0),
    "a file too many": lambda d: d["files"].update(
        {f"f{i}": d["files"]["model.onnx"] for i in range(MOST_FILES - len(NAMES) + 1)}
    ),
    "a file name too long": lambda d: d["files"].update({"x" * 129: d["files"]["model.onnx"]}),
    "no file of the tokenizer": lambda d: d["files"].pop("tokenizer.json"),
    "no vectors": lambda d: d["files"].pop("vectors.json"),
    "no graph": lambda d: d["files"].pop("model.onnx"),
    "a file for bytes": lambda d: d["tokenizer"].update(kind="byte"),
    "no file for a library": lambda d: d["tokenizer"].update(file=None),
    "an axis too many": lambda d: state(d).update(shape=[1] * (MOST_AXES + 1), head_splits=1),
    "split heads of two axes": lambda d: (
        state(d).update(shape=[4, 16], head_splits=2),
    ),
    "head splits that do not divide": lambda d: state(d).update(head_splits=4),
    "another output": lambda d: state(d).update(output="present.blocks.0.m"),
    "another input": lambda d: state(d).update(input="past.blocks.0.m"),
    "half precision": lambda d: d["state"].update(dtype="float16"),
    "another size": lambda d: d["state"].update(bytes_per_session=d["state"]["bytes_per_session"] + 4),
    "a state of a terabyte in files of a kilobyte": lambda d: (
        state(d).update(shape=[1 << 20, 1 << 18, 1], head_splits=1),
        d["state"].update(bytes_per_session=4 * (1 << 38) + 4 * 12),
    ),
    "one bit": lambda d: d["quantization"]["tensors"]["a"].update(bits=1),
    "nine bits": lambda d: d["quantization"]["tensors"]["a"].update(bits=9),
    "blocks of 8": lambda d: d["quantization"]["tensors"]["a"].update(block_size=8),
    "blocks of 512": lambda d: d["quantization"]["tensors"]["a"].update(block_size=512),
    "a recipe of true chunks": lambda d: d["quantization"]["recipe"].update(chunk=True),
    "a recipe's words for numbers": lambda d: d["quantization"]["recipe"].update(block_size="64"),
    "bits of text to keep": lambda d: d["quantization"]["recipe"].update(keep={"a": "8"}),
    "one bit to keep": lambda d: d["quantization"]["recipe"].update(keep={"a": 1}),
    "more bits to keep than there are": lambda d: d["quantization"]["recipe"].update(keep={"a": 33}),
    "a recipe and no tensors": lambda d: d["quantization"].update(tensors={}),
    "tensors as a list": lambda d: d["quantization"].update(tensors=[]),
    "a seed among the defaults": lambda d: d["sampling"].update(seed=1),
    "a default out of range": lambda d: d["sampling"].update(temperature=-1),
    "a version of one number": lambda d: d["minimum_runtime"].update(onnxruntime="1"),
    "a family too long": lambda d: d.update(family="x" * 101),
    "a hash too short": lambda d: d["source"].update(sha256="a" * 63),
    "a hash in capitals": lambda d: d["source"].update(sha256="A" * 64),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_lies_on_a_limit_is_read(name: str) -> None:
    document = edited(ACCEPTED[name])
    assert document != edited(lambda _: None)
    assert json.loads(Manifest.from_json(document).to_json()) == json.loads(document)


@pytest.mark.parametrize("name", REFUSED)
def test_what_lies_beyond_a_limit_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"expected .*got .*; "):
        Manifest.from_json(edited(REFUSED[name]))


@pytest.mark.parametrize(
    "name", ["a/b", "../x", "..", ".hidden", "", "x y", "\u00e9", "a\n", "a\\b", "C:", "\x1b[2J", "manifest.json", "-x"]
)
def test_names_of_files_are_plain(name: str) -> None:
    with pytest.raises(BundleError, match="plain file names"):
        Manifest.from_json(edited(lambda d: d["files"].update({name: d["files"]["model.onnx"]})))


def test_what_two_readers_could_read_in_two_ways_is_refused() -> None:
    text = FULL.to_json()
    for old, new in (
        ("{", '{"schema": 2,'),
        ('"graph": {', '"graph": {"chunk": 33,'),
        ('"target_mb": 1.5', '"target_mb": NaN'),
        ('"target_mb": 1.5', '"target_mb": Infinity'),
        ('"target_mb": 1.5', '"target_mb": -Infinity'),
    ):
        assert old in text
        with pytest.raises(BundleError, match="to be JSON"):
            Manifest.from_json(text.replace(old, new, 1))


def test_a_state_may_be_so_large_and_no_larger() -> None:
    """64 MB at least, or 64 times the bundle."""
    for total, numbers in ((1000, 1 << 24), (2 << 20, 1 << 25)):
        files = {name: FileEntry(0, HASHES[0]) for name in NAMES} | {"model.onnx": FileEntry(total, HASHES[0])}
        for more, fits in ((0, True), (1, False)):
            table = StateTable([StateSpec("blocks.0.conv", (1, numbers + more))])
            text = dataclasses.replace(FULL, files=files, state=table).to_json()
            if fits:
                assert Manifest.from_json(text).state == table
            else:
                with pytest.raises(BundleError, match="a state that fits"):
                    Manifest.from_json(text)
