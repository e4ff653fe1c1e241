"""Text streaming: stop strings over every border, exact UTF-8, prompts continued in real sessions."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import decoders

from xlstm_edge_runtime import BundleError, Finish, InputError, Piece, stream_text
from xlstm_edge_runtime.options import GenerationOptions, ResolvedOptions
from xlstm_edge_runtime.text import StopMatcher
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, encode_text, load_tokenizer

from ..oracles.tokenizers import KINDS

HARD = "naïve 你好 😀👩‍👩‍👧 日本語 e\u0301 end"


class Script:
    """A model and session in one that says fixed ids, whatever it reads."""

    chunk = 4

    def __init__(self, text: str | Sequence[int], tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        ids = self.tokenizer.encode(text, special=False) if isinstance(text, str) else text
        self.script, self.fed, self.at = [*ids, 0], list[int](), -1
        self.model, self.vocab_size = self, self.tokenizer.vocab_size + 8

    @property
    def tokens(self) -> int:
        return len(self.fed)

    def encode(self, prompt: str, *, start: bool = True) -> list[int]:
        return encode_text(self.tokenizer, prompt, self.vocab_size, start=start)

    def resolve(self, options: GenerationOptions) -> ResolvedOptions:
        return options.resolve()

    def check_ids(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        return np.array(tokens, np.int64)

    def advance(self, tokens: NDArray[np.int64] | int) -> NDArray[np.float32]:
        if isinstance(tokens, int):
            self.fed.append(tokens)
            self.at = min(self.at + 1, len(self.script) - 1)
        else:
            self.fed += tokens.tolist()
            self.at = 0
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[self.at]] = 1
        return logits


def say(script: Script, prompt: str = "go", **options: Any) -> tuple[str, Finish]:
    *pieces, finish = stream_text(script, prompt, max_tokens=len(script.script) - 1, **options)
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
    begins = [text.find(stop) for stop in stops if stop in text]
    if not begins:
        assert (said, finish.reason) == (text, "length")
    else:
        assert (said, finish.reason) == (text[: min(begins)], "stop")


@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4),
    st.text(alphabet="ab", max_size=20),
    st.lists(st.integers(0, 20)),
)
def test_the_matcher_does_not_care_how_text_is_cut(stops: list[str], text: str, cuts: list[int]) -> None:
    begins = [text.find(stop) for stop in stops if stop in text]
    matcher, places = StopMatcher(stops), sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    parts = [text[a:b] for a, b in pairwise(places)]
    shown = "".join([matcher.push(part) for part in parts]) + matcher.flush()
    assert shown == (text[: min(begins)] if begins else text)
    assert matcher.hit == bool(begins)


def test_text_is_released_as_early_as_possible() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xa") == "x"
    assert matcher.push("bd") == "abd"
    assert matcher.flush() == ""
    waits = StopMatcher(["abcd", "c"])
    assert waits.push("xabc") == "x"  # "c" is complete, but "abcd" would begin before it
    assert not waits.hit
    assert waits.push("e") == "ab"
    assert waits.hit
    ends = StopMatcher(["abcd", "c"])
    assert ends.push("abc") + ends.flush() == "ab"
    assert ends.hit


def test_a_long_stop_string_costs_little() -> None:
    matcher = StopMatcher(["a" * 50_000 + "b"])
    assert sum(len(matcher.push("a")) for _ in range(60_000)) == 10_000
    assert matcher.push("b") == ""
    assert matcher.hit


def test_invisible_text_matches_and_is_not_shown() -> None:
    matcher = StopMatcher(["<e>\nUser"])
    assert matcher.push("Hi") + matcher.push("<e>", visible=False) == "Hi"
    assert matcher.push("\nUs") == ""
    assert matcher.push("er: ") == ""
    assert matcher.hit
    other = StopMatcher(["<e>\nUser"])
    assert other.push("<e>", visible=False) + other.push("\nUse it") == "\nUse it"


@pytest.mark.parametrize("stop", ["abc", [""], [3], None, 5, {"a"}, ["a\udcff"]])
def test_bad_stops_are_refused(stop: Any) -> None:
    with pytest.raises(InputError, match="stop"):
        StopMatcher(stop)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, HuggingFaceTokenizer]:
    return {kind: HuggingFaceTokenizer(json.loads(make().to_str())) for kind, make in KINDS.items()}


def test_byte_level_bpe_streams_exactly(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers["ByteLevel"]
    per_token = "".join(tokenizer.decode([i]) for i in tokenizer.encode(HARD))
    assert per_token != HARD  # what a naive loop prints
    assert say(Script(HARD, tokenizer))[0] == HARD
    stream = tokenizer.stream()
    half = tokenizer.encode("😀")[:-1]
    assert "".join(stream.push(i) for i in half) + stream.flush() == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["the cat", "cat sat.", "x x"])
def test_generated_text_follows_the_prompt(kind: str, text: str, tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers[kind]
    script = Script(text, tokenizer)
    said, _ = say(script, "the dog")
    ids = [*tokenizer.encode("the dog"), *tokenizer.encode(text, special=False)]
    assert script.fed == ids
    assert tokenizer.decode(tokenizer.encode("the dog")) + said == tokenizer.decode(ids)
    assert said[0] == " " or kind in (
        "ByteLevel",
        "ByteLevel in a sequence",
        "post-processor with bos",
        "truncation and padding",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_that_is_a_token_stops(kind: str, tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers[kind]
    for stop in ("<|im_end|>", "</s>", "<tool>"):
        end = tokenizer.added[stop]
        ids = tokenizer.encode("the cat", special=False)
        said, finish = say(Script([*ids, end, *ids], tokenizer), stop=[stop])
        assert (finish.reason, finish.stop_id) == ("stop", end)
        assert said.strip() == tokenizer.decode(ids).strip()
        _, finish = say(Script([*ids, end, *ids], tokenizer), stop_ids=[end])
        assert finish.reason == "eos"


def test_a_stop_string_may_have_specials_inside(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers["ByteLevel"]
    text = "the cat</s>\nUser: hi"
    script = Script(text, tokenizer)
    assert tokenizer.added["</s>"] in script.script
    said, finish = say(script, stop=["</s>\nUser"])
    assert (said, finish.reason) == ("the cat", "stop")
    assert say(Script(text, tokenizer))[0] == "the cat\nUser: hi"
    said, finish = say(Script("the cat</s>\nend", tokenizer), stop=["</s>\nUser"])
    assert (said, finish.reason) == ("the cat\nend", "length")


def test_a_longer_stop_string_may_end_with_a_token(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers["ByteLevel"]
    said, finish = say(Script("the cat\n<|im_end|>", tokenizer), stop=["\n<|im_end|>", "<|im_end|>"])
    assert (said, finish.reason) == ("the cat", "stop")


def test_text_that_waits_for_a_merge_comes_before_a_special_token() -> None:
    library = KINDS["ByteLevel"]()
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("QQ", "Q")])
    tokenizer = HuggingFaceTokenizer(json.loads(library.to_str()))
    said, finish = say(Script("the cat</s> sat", tokenizer), stop=["cat</s>"])
    assert (said, finish.reason) == ("the ", "stop")


@pytest.mark.parametrize(
    "options", [{"cancel": 3}, {"on_prompt": "x"}, {"logit_bias": {1: "3"}}, {"logit_bias": {1: True}}]
)
def test_bad_functions_and_biases_are_refused_at_the_call(
    options: Any, tokenizers: dict[str, HuggingFaceTokenizer]
) -> None:
    script = Script("the cat", tokenizers["ByteLevel"])
    with pytest.raises(InputError, match="expected"):
        stream_text(script, "the", **options)
    assert not script.fed


def test_a_session_that_goes_on_gets_no_second_bos(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    tokenizer = tokenizers["post-processor with bos"]
    script = Script("x", tokenizer)
    say(script, "the cat")
    say(script, "the dog")
    assert script.fed.count(1) == 1
    assert script.fed[0] == 1
    begun = tokenizer.encode("the dog", special=False)
    assert script.fed[-len(begun) - 1 : -1] == begun


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "WordLevel"}}',
        "\x00",
        "[" * 100_000,
        '{"model": {}, "decoder": 7}',
    ],
    ids=range(8),
)
def test_damaged_tokenizers_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        load_tokenizer("huggingface", path)


@pytest.mark.parametrize("kind", ["whitespace", "none", ""])
def test_other_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind byte or huggingface"):
        load_tokenizer(kind, tmp_path / "tokenizer.json")


def test_nothing_is_fed_when_anything_is_wrong(tokenizers: dict[str, HuggingFaceTokenizer]) -> None:
    bad: list[dict[str, Any]] = [{"stop": "x"}, {"temperature": -1}, {"banned": [10**6]}, {"max_tokens": -1}]
    for options in bad:
        script = Script("x", tokenizers["ByteLevel"])
        with pytest.raises(InputError):
            stream_text(script, "the cat", **options)
        assert not script.fed
