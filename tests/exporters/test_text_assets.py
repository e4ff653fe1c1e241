"""What a checkpoint says of its text: special tokens, sampling defaults, and bundles without text."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.calibration import read_ids
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.text_assets import read_text_assets
from xlstm_edge_runtime.sampling import LARGEST_WINDOW

from ..command import Command, assert_nothing_written, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case
from ..oracles.tokenizers import KINDS

WIDE = BY_NAME["large-wide-vocab"]  # 300 ids


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
    special = read_text_assets(open_checkpoint(folder)).special
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
        command("export", checkpoint_of(BY_NAME["lm-mixed"]), "-o", tmp_path / "small", "--tokenizer", "byte"), 2
    )
    stack = checkpoint_of(BY_NAME["stack-mixed"])
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
    side = read_text_assets(replace(opened, spec=replace(opened.spec, vocab_size=256)), None, notes.append)
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


def side_of(folder: Path, vocab: int = 500) -> tuple[Any, list[str]]:
    """What export reads, and its notes, for a model of that many tokens."""
    notes: list[str] = []
    opened = open_checkpoint(folder)
    return read_text_assets(replace(opened, spec=replace(opened.spec, vocab_size=vocab)), None, notes.append), notes
