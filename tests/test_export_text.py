"""What text a checkpoint brings into its bundle: tokenizers in every form, special tokens, sampling defaults."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.convert import convert_tokenizer
from xlstm_edge_exporters.export import read_ids
from xlstm_edge_exporters.special import text_side
from xlstm_edge_runtime.sampling import LARGEST_WINDOW

from .command import Command, assert_nothing_written, assert_one_sentence
from .conftest import BY_NAME
from .oracles.cases import Case
from .oracles.tokenizers import KINDS, TEXTS

GOLDEN = Path(__file__).parent / "golden" / "sentencepiece"
WIDE = BY_NAME["b-wide-vocab"]  # 300 ids


@pytest.fixture
def folder(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A checkpoint of 300 ids, without a tokenizer."""
    shutil.copytree(checkpoint_of(WIDE), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def small(kind: str = "WordPiece") -> Tokenizer:
    """150 tokens and a few."""
    return KINDS[kind]()


def test_what_a_checkpoint_says_applies_at_every_entry(folder: Path, tmp_path: Path) -> None:
    library = KINDS["post-processor at both ends"]()
    library.enable_truncation(3)
    library.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.7, "top_k": 9, "eos_token_id": [7], "pad_token_id": 5}'
    )
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": {"content": "<s>"}}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    bundle = xlstm_edge.export(folder, tmp_path / "bundle")
    special = bundle.manifest.special_tokens
    assert (special.stop, special.bos, special.pad, special.add_bos) == ((7, 2, 3), 1, 5, False)
    assert bundle.manifest.sampling == {"temperature": 0.7, "top_k": 9}
    model = xr.load(bundle.path, threads=1)
    assert model.manifest == bundle.manifest
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    prompt = "the cat sat on the mat"
    ids = reference(prompt)["input_ids"]
    assert model.encode(prompt) == ids
    assert model.encode(prompt, start=False) == ids[1:-1]

    def run(session: xr.Session, **options: Any) -> list[int]:
        return [event.id for event in session.generate(ids, max_tokens=30, **options) if isinstance(event, xr.Token)]

    wanted = run(model.session(), seed=1, temperature=0.7, top_k=9, stop_ids=[7, 2, 3], ignore_eos=True)
    assert run(model.session(), seed=1) == wanted
    assert run(model.session(), seed=1, temperature=0.0) != wanted
    pieces = "".join(model.stream(prompt, max_tokens=30, seed=1))
    events = xr.stream_text(model.session(), prompt, max_tokens=30, seed=1)
    assert pieces == "".join(event.text for event in events if isinstance(event, xr.Piece))
    assert model.tokenizer.decode(ids) + pieces == model.tokenizer.decode([*ids, *wanted])
    likeliest = int(model.session().prefill(ids).argmax())
    assert run(model.session(), temperature=0.0, stop_ids=[likeliest]) == []


def test_the_bundle_s_stop_ids_stop_and_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    small().save(str(folder / "tokenizer.json"))
    bundle = xlstm_edge.export(folder, tmp_path / "bundle")
    ids = xr.load(bundle.path, threads=1).encode("the cat")
    first = int(xr.load(bundle.path, threads=1).session().prefill(ids).argmax())
    config = (
        json.loads((folder / "generation_config.json").read_text())
        if (folder / "generation_config.json").exists()
        else {}
    )
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": first}))
    model = xr.load(xlstm_edge.export(folder, tmp_path / "stops").path, threads=1)
    for stops in (None, [299]):  # the caller's come on top
        (*_, finish) = model.session().generate(ids, max_tokens=3, stop_ids=stops)
        assert isinstance(finish, xr.Finish)
        assert (finish.reason, finish.stop_id) == ("eos", first)
        (*_, finish) = xr.stream_text(model.session(), "the cat", max_tokens=3, stop_ids=stops)
        assert isinstance(finish, xr.Finish)
        assert (finish.reason, finish.stop_id) == ("eos", first)
    assert list(model.stream("the cat", max_tokens=3)) == []
    (*_, finish) = model.session().generate(ids, max_tokens=3, ignore_eos=True)
    assert isinstance(finish, xr.Finish)
    assert finish.reason == "length"


def test_every_eos_that_is_named_stops(folder: Path) -> None:
    small().save(str(folder / "tokenizer.json"))
    config = (
        json.loads((folder / "tokenizer_config.json").read_text())
        if (folder / "tokenizer_config.json").exists()
        else {}
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": 9, "bos_token_id": 5000, "pad_token_id": true}')
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<unk>"}))
    special = text_side(open_checkpoint(folder)).special
    assert special.stop == (9, 0)
    assert (special.bos, special.pad) == (None, None)


def test_a_bos_that_the_model_wants_comes_once(folder: Path, tmp_path: Path) -> None:
    small().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"force_bos_token_insert": true, "bos_token_id": 1}')
    model = xr.load(xlstm_edge.export(folder, tmp_path / "bundle").path, threads=1)
    plain = model.tokenizer.encode("the cat")
    assert model.encode("the cat") == [1, *plain]
    assert model.encode("<s>the cat") == [1, *plain]
    assert model.encode("the cat", start=False) == plain
    (tmp_path / "text").write_text("the cat")
    assert read_ids(open_checkpoint(folder), tmp_path / "text").tolist() == [1, *plain]
    KINDS["post-processor at both ends"]().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"force_bos_token_insert": true, "bos_token_id": 0}')
    model = xr.load(xlstm_edge.export(folder, tmp_path / "other").path, threads=1)
    assert model.encode("the cat") == [1, *plain, 2]


def test_calibration_reads_the_whole_text(folder: Path, tmp_path: Path) -> None:
    library = small()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    library.save(str(folder / "tokenizer.json"))
    (tmp_path / "text").write_text("the cat sat. " * 40)
    library.no_truncation()
    library.no_padding()
    assert read_ids(open_checkpoint(folder), tmp_path / "text").tolist() == library.encode("the cat sat. " * 40).ids


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


def test_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer").mkdir()
    small().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    bundle = xlstm_edge.export(folder, tmp_path / "bundle")
    assert bundle.manifest.tokenizer.kind == "huggingface"
    assert 2 in bundle.manifest.special_tokens.stop
    assert xr.load(bundle.path, threads=1).encode("the cat") == small().encode("the cat").ids


@pytest.mark.parametrize("name", ["none", "tokenizer.model", "vocab.json"])
def test_a_bundle_without_text_is_said_in_a_line(name: str, folder: Path, tmp_path: Path, command: Command) -> None:
    if name != "none":
        (folder / name).write_text("\x1b[31m junk")
        (folder / "merges.txt").write_text("junk")
    result = command("export", folder, "-o", tmp_path / "bundle")
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if line.startswith("note: ")]
    assert len(lines) == 1
    assert "no text" in lines[0]
    assert "\x1b" not in lines[0]
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["tokenizer"]["kind"] == "none"


def test_text_as_it_should_be_says_nothing(folder: Path, tmp_path: Path, command: Command) -> None:
    small().save(str(folder / "tokenizer.json"))
    assert "note" not in command("export", folder, "-o", tmp_path / "bundle").err


def test_bytes_only_when_told(
    folder: Path, tmp_path: Path, command: Command, checkpoint_of: Callable[[Case], Path]
) -> None:
    assert command("export", folder, "-o", tmp_path / "bytes", "--tokenizer", "byte").code == 0
    model = xr.load(tmp_path / "bytes", threads=1)
    assert model.encode("né") == list("né".encode())
    assert isinstance("".join(model.stream("né", max_tokens=20, temperature=5.0, seed=1)), str)
    assert_one_sentence(
        command("export", checkpoint_of(BY_NAME["a1-mixed"]), "-o", tmp_path / "small", "--tokenizer", "byte"), 2
    )
    stack = checkpoint_of(BY_NAME["a3-mixed"])
    assert_one_sentence(command("export", stack, "-o", tmp_path / "stack", "--tokenizer", "byte"), 2)
    assert_one_sentence(command("export", folder, "-o", tmp_path / "file", "--tokenizer", tmp_path / "nowhere"), 2)
    assert_one_sentence(command("export", folder, "-o", tmp_path / "file", "--tokenizer", "\0"), 2)
    assert_nothing_written(tmp_path, {"bytes", "checkpoint"})


def test_a_tokenizer_can_be_given_or_left_out(folder: Path, tmp_path: Path, command: Command) -> None:
    small().save(str(tmp_path / "mine.json"))
    small("WordLevel").save(str(folder / "tokenizer.json"))
    assert command("export", folder, "-o", tmp_path / "given", "--tokenizer", tmp_path / "mine.json").code == 0
    assert (tmp_path / "given" / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()
    result = command("export", folder, "-o", tmp_path / "none", "--tokenizer", "none")
    assert "note" not in result.err
    assert json.loads((tmp_path / "none" / "manifest.json").read_text())["tokenizer"]["kind"] == "none"
    (tmp_path / "recipe.toml").write_text('tokenizer = "mine.json"\n')
    xlstm_edge.export(folder, tmp_path / "recipe", recipe=tmp_path / "recipe.toml")
    assert (tmp_path / "recipe" / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()


def test_bytes_are_not_guessed_from_the_vocabulary(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(checkpoint_of(WIDE))
    notes: list[str] = []
    side = text_side(replace(opened, spec=replace(opened.spec, vocab_size=256)), None, notes.append)
    assert side.info.kind == "none"
    assert "--tokenizer byte" in notes[0]


def test_a_bundle_is_held_against_the_text_it_was_given(folder: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", folder, "-o", tmp_path / "bytes", "--tokenizer", "byte").code == 0
    words = ("verify", tmp_path / "bytes", "--against", folder)
    assert command(*words, "--tokenizer", "byte").code == 0
    without = command(*words)  # the checkpoint has no tokenizer of its own
    assert_one_sentence(without, 1)
    assert "--tokenizer" in without.err


@pytest.mark.parametrize(
    "name", ["AutoProcessor", "AutoTokenizer", "pipeline", "AutoModel", "evil.Tokenizer", "Trainer"]
)
def test_a_file_does_not_choose_what_runs(name: str, folder: Path, tmp_path: Path, command: Command) -> None:
    """Nothing of that name is asked for: no question on the terminal, no network, no code."""
    (folder / "vocab.json").write_text(json.dumps({chr(0x100 + i): i for i in range(40)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": name, "auto_map": {name: "evil/repo--a.B", "AutoTokenizer": ["a.B", None]}})
    )
    result = command("export", folder, "-o", tmp_path / "bundle")
    assert result.code == 0
    assert "no text" in result.err
    assert "tokenizer class" in result.err
    assert "run the custom code" not in result.out + result.err


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link to nothing"])
def test_settings_that_are_no_files_are_refused(
    name: str, what: str, folder: Path, tmp_path: Path, command: Command
) -> None:
    """Not taken as absent: special tokens would be lost without a word."""
    small().save(str(folder / "tokenizer.json"))
    make = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "link to nothing": lambda path: path.symlink_to("nothing"),
    }
    (folder / name).unlink(missing_ok=True)
    make[what](folder / name)
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle"), 2)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt"])
def test_a_tokenizer_that_is_a_device_does_not_block(name: str, folder: Path) -> None:
    (folder / name).symlink_to("/dev/zero")
    _, notes = side_of(folder)
    assert len(notes) == 1
    assert "regular" in notes[0]


SAMPLING = [
    ({"do_sample": True, "top_p": 0.9}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9}),
    ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
    ({"do_sample": True, "temperature": 0.7, "top_k": 0}, {"temperature": 0.7}),
    ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3, "penalty_window": LARGEST_WINDOW}),
    ({"temperature": 0.7}, {}),
    ({"do_sample": False, "top_p": 0.5}, {}),
]


@pytest.mark.parametrize(("file", "expected"), SAMPLING, ids=lambda value: str(value)[:40])
def test_what_a_generation_config_leaves_out_is_a_default(
    file: dict[str, Any], expected: dict[str, Any], folder: Path, tmp_path: Path, command: Command
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(file))
    assert command("export", folder, "-o", tmp_path / "bundle").code == 0
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["sampling"] == expected


def test_a_checkpoint_s_penalty_sees_the_whole_prompt(folder: Path, tmp_path: Path) -> None:
    """As in transformers."""
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    model = xr.load(xlstm_edge.export(folder, tmp_path / "bundle").path, threads=1)
    prompt = [n % 150 for n in range(300)]
    process = RepetitionPenaltyLogitsProcessor(1.5)
    session, seen, wanted = model.session(), list(prompt), []
    logits = session.prefill(prompt)
    for _ in range(8):
        scores = process(torch.tensor([seen]), torch.tensor(logits)[None])[0]
        wanted.append(int(scores.argmax()))
        seen.append(wanted[-1])
        logits = session.step(wanted[-1])
    events = model.session().generate(prompt, max_tokens=8, ignore_eos=True)
    assert [event.id for event in events if isinstance(event, xr.Token)] == wanted


@pytest.mark.parametrize("value", [True, "0.7", [1], float("nan")], ids=str)
def test_sampling_defaults_of_another_type(value: Any, folder: Path, tmp_path: Path, command: Command) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": value}))
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle"), 2)


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
    return text_side(replace(opened, spec=replace(opened.spec, vocab_size=vocab)), None, notes.append), notes


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
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["c-plain"]), tmp_path / "checkpoint"))
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
