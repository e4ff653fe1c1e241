"""Which tokenizers onnxruntime-genai is let read: those for which it gives the ids that the library `tokenizers` gives."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from xlstm_edge_exporters.targets.genai_tokenizer import RULES, differences, not_read
from xlstm_edge_runtime.manifest import read_manifest

from ...command import PATHS
from ...oracles.tokenizers import KINDS, TEXTS, byte_level

needs_genai = pytest.mark.skipif(
    find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed: make devices-genai"
)
BPE, WORDS, JOINS, LEAVES, TOKENS = RULES
LONG = [
    *TEXTS, "12345 a1b2", "x   \n\n  y", "DON'T we'll I'M", "the cat<|im_end|> sat<tool>on", " lead", "trail ", "a" * 60,
    "<s>x</s>", "concat scatter cat  sat", "x  cat", "QQ",
]  # fmt: skip


def with_words(pre_tokenizer: Any) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = byte_level()
        tokenizer.pre_tokenizer = pre_tokenizer
        return tokenizer

    return make


def normalized(normalizer: Any) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = byte_level()
        tokenizer.normalizer = normalizer
        return tokenizer

    return make


def with_token(**flags: bool) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = byte_level()
        tokenizer.add_tokens([AddedToken("cat", **flags)])
        return tokenizer

    return make


BYTES = pre_tokenizers.ByteLevel
READ = {
    "ByteLevel": KINDS["ByteLevel"],
    "post-processor with bos": KINDS["post-processor with bos"],
    "truncation and padding": KINDS["truncation and padding"],
    "in a sequence of one": with_words(pre_tokenizers.Sequence([BYTES(add_prefix_space=False)])),
    "a plain added token": with_token(),
    "a token with what is after it": with_token(rstrip=True),
}
NOT_READ = {
    "byte fallback": (KINDS["byte fallback"], BPE),
    "Unigram": (KINDS["Unigram"], BPE),
    "WordPiece": (KINDS["WordPiece"], BPE),
    "WordLevel": (KINDS["WordLevel"], BPE),
    "BPE with suffix": (KINDS["BPE with suffix"], BPE),
    "BPE without decoder": (KINDS["BPE without decoder"], WORDS),
    "a space in front": (with_words(BYTES(add_prefix_space=True)), WORDS),
    "no pattern": (with_words(BYTES(add_prefix_space=False, use_regex=False)), WORDS),
    "another pattern": (
        with_words(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("[a-z]+|."), "isolated"), BYTES(use_regex=False)])),
        WORDS,
    ),
    "ByteLevel in a sequence": (KINDS["ByteLevel in a sequence"], JOINS),
    "lower case": (normalized(normalizers.Lowercase()), LEAVES),
    "a token of whole words": (with_token(single_word=True), TOKENS),
    "a token with what is before it": (with_token(lstrip=True), TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_tokenizers_that_it_reads(name: str) -> None:
    assert not_read(READ[name]().to_str().encode()) is None


@pytest.mark.parametrize("name", NOT_READ)
def test_tokenizers_that_it_would_read_wrong(name: str) -> None:
    make, reason = NOT_READ[name]
    assert not_read(make().to_str().encode()) == reason


def test_every_kind_of_tokenizer_is_here() -> None:
    assert not KINDS.keys() - READ.keys() - NOT_READ.keys() - {"post-processor at both ends"}  # as WordPiece


def test_what_it_does_otherwise_is_said(export_of: Callable[..., Path]) -> None:
    manifest = read_manifest(export_of("shipped", target="genai"))

    def said(make: Callable[[], Tokenizer] | None) -> str:
        return " ".join(differences(manifest, None if make is None else make().to_str().encode()))

    assert not said(byte_level)
    assert not said(None)
    assert "NFC" in said(normalized(normalizers.NFC()))
    assert "adds no special tokens" in said(KINDS["post-processor with bos"])


@pytest.fixture
def genai_tokenizer(export_of: Callable[..., Path], tmp_path: Path) -> Callable[[Tokenizer], Any]:
    """genai's own of a tokenizer.json, whether it is let read it or not."""
    import onnxruntime_genai

    def make(tokenizer: Tokenizer) -> Any:
        folder = Path(shutil.copytree(export_of("shipped", target="genai"), tmp_path / "b"))
        tokenizer.save(str(folder / "tokenizer.json"))
        return onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))

    return make


@needs_genai
@pytest.mark.parametrize("name", READ)
def test_genai_gives_the_same_ids_and_texts(name: str, genai_tokenizer: Callable[[Tokenizer], Any]) -> None:
    """Without the special tokens that a post-processor adds; streams token by token."""
    ours = READ[name]()
    theirs = genai_tokenizer(ours)
    ours.no_truncation()
    ours.no_padding()
    for text in LONG:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs.encode(text).tolist() == ids, text
        stream = theirs.create_stream()
        assert theirs.decode(ids) == "".join(stream.decode(token) for token in ids) == ours.decode(ids)


# In a process of its own: some it reads with a segmentation fault.
BOTH_WAYS = """
import json, sys
import xlstm_edge_runtime
import onnxruntime_genai
theirs = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(sys.argv[1]))
texts, ids = json.loads(sys.argv[2])
print(json.dumps([[theirs.encode(text).tolist() for text in texts], [theirs.decode(row) for row in ids]]))
"""


@needs_genai
@pytest.mark.parametrize("name", NOT_READ)
def test_genai_gives_other_ids_or_texts_for_what_it_is_not_let_read(
    name: str, export_of: Callable[..., Path], tmp_path: Path
) -> None:
    """So that a rule can go where genai has become better."""
    ours = NOT_READ[name][0]()
    folder = Path(shutil.copytree(export_of("shipped", target="genai"), tmp_path / "b"))
    ours.save(str(folder / "tokenizer.json"))
    paths = os.pathsep.join(filter(None, (PATHS, os.environ.get("PYTHONPATH"))))
    wanted = [ours.encode(text, add_special_tokens=False).ids for text in LONG]
    words = [sys.executable, "-c", BOTH_WAYS, folder, json.dumps([LONG, wanted])]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False, timeout=100)
    assert done.returncode != 0 or json.loads(done.stdout) != [wanted, [ours.decode(ids) for ids in wanted]]


@needs_genai
def test_a_bundle_whose_tokenizer_it_does_not_read_has_none(export_of: Callable[..., Path]) -> None:
    import onnxruntime_genai

    bundle = export_of("lm-mixed", target="genai", chunk=16)
    assert not (bundle / "tokenizer_config.json").exists()
    assert json.loads((bundle / "genai_config.json").read_text())["model"]["vocab_size"] == 98
    with pytest.raises(RuntimeError, match=r"tokenizer_config\.json"):
        onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(bundle)))
