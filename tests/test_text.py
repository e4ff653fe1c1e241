"""Text streaming: stop strings over every border, exact UTF-8, three tokenizers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xlstm_edge_runtime import BundleError, Finish, InputError, Piece, stream_text
from xlstm_edge_runtime.text import StopMatcher
from xlstm_edge_runtime.tokenizer import ByteTokenizer, kind_of, load_tokenizer

HARD = "naïve 你好 😀👩‍👩‍👧 日本語 e\u0301 end"


class Script:
    """A model and session in one that says a fixed text, byte by byte or token by token."""

    def __init__(self, text: str, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        self.script, self.fed = [*self.tokenizer.encode(text), 0], []  # type: ignore[var-annotated]
        self.at = -1

    def encode(self, prompt: str) -> list[int]:
        return list(self.tokenizer.encode(prompt))

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.step(-1)

    def step(self, token: int) -> NDArray[np.float32]:
        self.at = min(self.at + 1, len(self.script) - 1)
        logits = np.zeros(self.tokenizer.vocab_size, np.float32)
        logits[self.script[self.at]] = 1
        return logits


def say(script: Script, **options: Any) -> tuple[str, Finish]:
    *pieces, finish = stream_text(script, script, "go", max_tokens=len(script.script) - 1, **options)
    assert isinstance(finish, Finish)
    assert all(isinstance(piece, Piece) and piece.text for piece in pieces)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), finish


@given(st.text(max_size=40))
def test_bytes_stream_exactly(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert say(Script(text))[0] == text


@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_earliest_match(text: str, stops: list[str]) -> None:
    said, finish = say(Script(text), stop=stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (said, finish.reason) == (text, "length")
        return
    # The first stop to be complete wins; where several end together, the one that began first.
    end = min(ends)
    begin = min(text.find(s) for s in stops if s in text[:end])
    assert (said, finish.reason) == (text[:begin], "stop")


@given(st.text(alphabet="ab", min_size=1, max_size=6), st.text(alphabet="ab", max_size=20), st.data())
def test_the_matcher_does_not_care_how_text_is_cut(stop: str, text: str, data: st.DataObject) -> None:
    whole = StopMatcher([stop])
    expected = whole.push(text) + whole.flush()
    cut = data.draw(st.integers(0, len(text)))
    parts = StopMatcher([stop])
    assert parts.push(text[:cut]) + parts.push(text[cut:]) + parts.flush() == expected
    assert parts.hit == whole.hit == (stop in text)


def test_text_is_released_as_early_as_possible() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xa") == "x"
    assert matcher.push("bd") == "abd"
    assert matcher.flush() == ""


@pytest.mark.parametrize("stop", ["abc", [""], [3]])
def test_bad_stops_are_refused(stop: Any) -> None:
    with pytest.raises(InputError, match="stop"):
        StopMatcher(stop)


def train_bpe(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat. 你好你好 ééé"], trainer)
    tokenizer.save(str(path))
    return path


def test_byte_level_bpe_streams_exactly(tmp_path: Path) -> None:
    path = train_bpe(tmp_path / "tokenizer.json")
    assert kind_of(path) == "huggingface"
    tokenizer = load_tokenizer("huggingface", path)
    per_token = "".join(tokenizer.decode([i]) for i in tokenizer.encode(HARD))
    assert per_token != HARD  # what a naive loop prints
    assert say(Script(HARD, tokenizer))[0] == HARD
    stream = tokenizer.stream()
    half = tokenizer.encode("😀")[:-1]
    assert "".join(stream.push(i) for i in half) + stream.flush() == "\ufffd"


def word_level(path: Path, split: Any) -> Tokenizer:
    vocabulary = {"[UNK]": 0, "PIECE_START": 1, "NOTE_ON=60": 2, "TIME=4": 3, "a": 4, "=": 5, "b": 6, "60": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(path))
    return tokenizer


@pytest.mark.parametrize(
    "split", [pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()], ids=["words", "spaces"]
)
@pytest.mark.parametrize(
    "text", ["PIECE_START NOTE_ON=60 TIME=4", "a  b\n zzz", "", "a=b 60", "a [PAD] b", "[PAD]a"], ids=repr
)
def test_whitespace_tokenizer_agrees_with_the_library(split: Any, text: str, tmp_path: Path) -> None:
    library = word_level(tmp_path / "tokenizer.json", split)
    assert kind_of(tmp_path / "tokenizer.json") == "whitespace"
    ours = load_tokenizer("whitespace", tmp_path / "tokenizer.json")
    ids = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.vocab_size == library.get_vocab_size()
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=True)
    stream = ours.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == ours.decode(ids)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}', '{"model": {"type": "WordLevel"}}', "\x00"])
def test_damaged_tokenizers_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    for kind in ("whitespace", "huggingface"):
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            load_tokenizer(kind, path)


def test_unknown_words_vanish_where_there_is_no_unknown_token(tmp_path: Path) -> None:
    document = {
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<x>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    assert load_tokenizer("whitespace", path).encode("a b a") == [0, 0]
