"""Other forms of tokenizers become a tokenizer.json that reads as `transformers` reads them."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
)

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.convert_tokenizer import convert_tokenizer
from xlstm_edge_exporters.text_assets import read_text_assets

from ..command import Command
from ..conftest import BY_NAME
from ..oracles.cases import Case
from ..oracles.tokenizers import KINDS, TEXTS

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sentencepiece"
WIDE = BY_NAME["large-wide-vocab"]  # 300 ids


@pytest.fixture
def folder(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A checkpoint of 300 ids, without a tokenizer."""
    shutil.copytree(checkpoint_of(WIDE), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def small(kind: str = "WordPiece") -> Tokenizer:
    """150 tokens and a few."""
    return KINDS[kind]()


def test_vocab_and_merges_are_converted(folder: Path, tmp_path: Path, command: Command) -> None:
    library = KINDS["ByteLevel"]()
    library.model.save(str(tmp_path))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    document, why = convert_tokenizer(folder)
    assert why is None
    assert document is not None
    reference, ours = GPT2Tokenizer.from_pretrained(tmp_path), Tokenizer.from_str(document.decode())
    for text in TEXTS:
        assert ours.encode(text).ids == reference(text)["input_ids"], text
        assert ours.decode(ours.encode(text).ids) == text


def test_conversion_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    library, real = KINDS["ByteLevel"](), builtins.__import__
    library.model.save(str(tmp_path))

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("no transformers", name="transformers")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    document, why = convert_tokenizer(tmp_path)
    assert why is None
    assert document is not None
    ours = Tokenizer.from_str(document.decode())
    for text in TEXTS:
        assert ours.encode(text).ids == library.encode(text, add_special_tokens=False).ids
    (tmp_path / "vocab.json").unlink()
    shutil.copyfile(GOLDEN / "bpe.model", tmp_path / "tokenizer.model")
    document, why = convert_tokenizer(tmp_path)
    assert document is None
    assert "transformers" in str(why)
    assert "no text" in str(why)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_is_converted(kind: str, name: str, tmp_path: Path) -> None:
    """The ids are those that the package sentencepiece gave for the same file."""
    shutil.copyfile(GOLDEN / f"{kind}.model", tmp_path / name)
    document, why = convert_tokenizer(tmp_path)
    assert why is None
    assert document is not None
    ours = Tokenizer.from_str(document.decode())
    for text, ids in json.loads((GOLDEN / "ids.json").read_text())[kind].items():
        assert ours.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.parametrize("cased", [False, True])
def test_a_word_piece_vocabulary_is_converted(cased: bool, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "Cat", "##s", ".", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    if cased:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    document, why = convert_tokenizer(tmp_path)
    assert why is None
    assert document is not None
    reference = BertTokenizer.from_pretrained(tmp_path)
    for text in ("the Cats.", "a cat zzz", "Cat"):
        assert Tokenizer.from_str(document.decode()).encode(text).ids == reference(text)["input_ids"]


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tekken.json", "vocab.json", "spm.model"])
def test_a_tokenizer_in_a_form_that_is_not_read_is_named(name: str, folder: Path) -> None:
    (folder / name).write_text("aGVsbG8= 0")
    side, notes = side_of(folder)
    assert side.document is None
    assert [name in note and "no text" in note for note in notes] == [True]


def test_what_the_settings_say_is_converted_too(tmp_path: Path) -> None:
    """Without a tokenizer.json transformers follows add_bos_token; beside one it does not."""
    shutil.copyfile(GOLDEN / "bpe.model", tmp_path / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "auto_map": {"AutoTokenizer": ["x.y", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    document, why = convert_tokenizer(tmp_path)
    assert why is None
    assert document is not None
    ids = json.loads((GOLDEN / "ids.json").read_text())["bpe"]["the cat"]
    assert Tokenizer.from_str(document.decode()).encode("the cat").ids == [1, *ids]
    small().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}')
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert reference("the cat")["input_ids"] == small().encode("the cat").ids


# What trainers leave beside a tokenizer.json: the class, and settings that its constructor applies.
NAMED: list[tuple[str, dict[str, Any]]] = [
    ("ByteLevel", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    ("ByteLevel", {"tokenizer_class": "GPTNeoXTokenizerFast"}),
    ("post-processor with bos", {"tokenizer_class": "Qwen2Tokenizer"}),
    ("byte fallback", {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "bos_token": "<s>"}),
    ("ByteLevel", {"tokenizer_class": "LlamaTokenizer"}),
    ("WordPiece", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "unk_token": "<unk>"}),
    ("ByteLevel", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}),
]


def side_of(folder: Path, vocab: int = 500) -> tuple[Any, list[str]]:
    """What export reads, and its notes, for a model of that many tokens."""
    notes: list[str] = []
    opened = open_checkpoint(folder)
    return read_text_assets(replace(opened, spec=replace(opened.spec, vocab_size=vocab)), None, notes.append), notes


@pytest.mark.parametrize(("kind", "config"), NAMED, ids=str)
def test_settings_beside_a_tokenizer_are_those_of_its_class(
    kind: str, config: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    library = KINDS[kind]()
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    side, notes = side_of(folder)
    (tmp_path / "text").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, tmp_path / "text" / name)
    (tmp_path / "text" / "config.json").write_text("{}")
    oracle = AutoTokenizer.from_pretrained(tmp_path / "text")
    differ = False
    for text in [*TEXTS, "A Cat", "e\u0301"]:
        ids = oracle(text)["input_ids"]
        assert side.tokenizer.encode(text) == ids, text
        decoded = oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert side.tokenizer.decode(ids) == decoded
        differ |= library.encode(text).ids != ids
    assert any("transformers" in note for note in notes) == differ


def test_a_class_that_is_not_known_here_is_said(folder: Path) -> None:
    small().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DistilBertTokenizer\\u001b[31m"}')
    side, notes = side_of(folder)
    assert side.document == (folder / "tokenizer.json").read_bytes()
    assert ["DistilBertTokenizer" in note and note.isprintable() for note in notes] == [True]


def test_a_class_that_cannot_read_every_text_is_not_taken(folder: Path) -> None:
    """No [UNK] in this vocabulary, which that class wants."""
    small().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    side, notes = side_of(folder)
    assert side.document == (folder / "tokenizer.json").read_bytes()
    assert ["as it stands" in note for note in notes] == [True]


def test_where_no_file_names_a_class_the_file_decides(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """For this model type AutoTokenizer would take another one; a pair of files is read as that."""
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["hf-plain"]), tmp_path / "checkpoint"))
    library = KINDS["post-processor with bos"]()
    library.save(str(folder / "tokenizer.json"))
    side, notes = side_of(folder)
    assert side.document == (folder / "tokenizer.json").read_bytes()
    assert ["AutoTokenizer" in note for note in notes] == [True]
    (folder / "tokenizer.json").unlink()
    model = json.loads(library.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    side, notes = side_of(folder)
    oracle = AutoTokenizer.from_pretrained(folder)
    for text in ("the cat sat", "e\u0301te\u0301"):
        assert side.tokenizer.encode(text) == oracle(text)["input_ids"]


def test_a_class_that_fails_on_the_file_leaves_it_as_it_stands(folder: Path) -> None:
    small("ByteLevel").save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "split_special_tokens": True, "clean_up_tokenization_spaces": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    side, notes = side_of(folder)
    assert side.document == (folder / "tokenizer.json").read_bytes()
    assert ["as it stands" in note for note in notes] == [True, False]
    assert "split_special_tokens is not applied" in notes[1]  # clean_up is ignored by transformers for a BPE


def test_without_transformers_a_named_class_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": true}'
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    side, notes = side_of(folder)
    assert side.document == (folder / "tokenizer.json").read_bytes()
    assert ["without transformers" in note for note in notes] == [True, False]
    assert "clean_up_tokenization_spaces is not applied" in notes[1]
