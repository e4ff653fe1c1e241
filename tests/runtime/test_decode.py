"""Streams of ids decode to what all ids at once decode to, whatever the decoder and the ids."""

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from xlstm_edge_runtime.decode import LONGEST_RUN
from xlstm_edge_runtime.tokenizer import HuggingFaceTokenizer, load_tokenizer

from ..oracles.tokenizers import KINDS, TEXTS

Load = Callable[[str], tuple[HuggingFaceTokenizer, Tokenizer, Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Kind -> ours, the library's, and transformers' tokenizer of one file."""

    @cache
    def make(kind: str) -> tuple[HuggingFaceTokenizer, Tokenizer, Any]:
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        library = KINDS[kind]()
        library.save(str(path))
        ours = load_tokenizer("huggingface", path)
        assert isinstance(ours, HuggingFaceTokenizer)
        return ours, library, PreTrainedTokenizerFast(tokenizer_file=str(path))

    return make


@cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


def stream(ours: HuggingFaceTokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    decoder = ours.stream(prompt)
    return "".join([decoder.push(token) for token in ids]) + decoder.flush()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ids_stream_as_they_decode(kind: str, load: Load, data: st.DataObject) -> None:
    ours, library, _ = load(kind)
    known = st.integers(0, library.get_vocab_size() + 5)
    ids = data.draw(st.lists(known, max_size=80))
    assert stream(ours, [], ids) == library.decode(ids, skip_special_tokens=True)
    odd = data.draw(st.lists(st.sampled_from([-1, 2**31, 2**32, 2**64, 10**30]) | known, max_size=20))
    assert stream(ours, [], odd) == ours.decode(odd)


BAD = ["C3 A9 C3 t", "F0 9F 98", "C3 A9", "E2 82", "20 61", "FF FF a C3", "a C3 A9 C3", "61 C3 A9 a C3"]


@pytest.mark.parametrize("spelled", BAD)
def test_bytes_that_are_no_text(spelled: str, load: Load) -> None:
    ours, library, _ = load("byte fallback")
    ids = [library.token_to_id(f"<0x{part}>" if len(part) == 2 else part) for part in spelled.split()]
    assert None not in ids
    assert stream(ours, [], ids) == library.decode(ids)


def test_a_run_of_bytes_that_is_too_long_is_cut_at_a_character(load: Load) -> None:
    ours, library, _ = load("byte fallback")
    text = "€" * LONGEST_RUN + "x"
    ids = [library.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    assert stream(ours, [], ids) == text
    decoder, longest = ours.stream([]), 0
    for index, token in enumerate(ids):
        if decoder.push(token):
            longest = index
    assert longest > len(ids) - LONGEST_RUN - 4
    prompt = ours.encode("a €")
    assert stream(ours, prompt, ids[:3]) == "€"
    assert stream(ours, prompt, [ids[0]]) == "\ufffd"  # the prompt's bytes stay what they were


ENDLESS: dict[str, Callable[[Tokenizer], Sequence[int]]] = {
    "bytes": lambda t: [t.token_to_id("<0xC3>") or t.token_to_id("Ã")],
    "specials": lambda t: [t.token_to_id("<s>")],
    "unknown": lambda t: [t.get_vocab_size() + 7],
    "characters in bytes": lambda t: [t.token_to_id(f"<0x{b:02X}>") or t.token_to_id("a") for b in "é".encode()],
    "words": lambda t: [t.token_to_id("t"), t.token_to_id("e")],
}


@pytest.mark.parametrize("kind", ["ByteLevel", "ByteLevel in a sequence", "byte fallback"])
@pytest.mark.parametrize("what", ENDLESS)
def test_endless_streams_cost_the_same_for_each_token(kind: str, what: str, load: Load) -> None:
    ours, library, _ = load(kind)
    part = list(ENDLESS[what](library))
    assert None not in part

    def seconds(count: int) -> float:
        begin, decoder = time.process_time(), ours.stream([])
        for _ in range(count // len(part)):
            for token in part:
                decoder.push(token)
        decoder.flush()
        return time.process_time() - begin

    seconds(2_000)
    short, long = seconds(10_000), seconds(100_000)
    assert long < 30 * short + 0.5  # ten times the tokens: quadratic is a hundred times
    decoder = ours.stream([])
    tracemalloc.start()
    for _ in range(50_000 // len(part)):
        for token in part:
            decoder.push(token)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 200_000


DECODERS = {
    "Gemma": ("byte fallback", [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "bytes and Metaspace": ("byte fallback", [decoders.ByteFallback(), decoders.Metaspace()]),
    "CTC": ("Unigram", [decoders.CTC(pad_token="e", word_delimiter_token="t")]),
    "WordPiece without cleanup": ("WordPiece", [decoders.WordPiece(cleanup=False)]),
    "Fuse and Replace": ("byte fallback", [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("at", "@")]),
    "Replace of a regex": ("Unigram", [decoders.Metaspace(), decoders.Fuse(), decoders.Replace(Regex("(t|h)+"), "+")]),
    "two Replaces": ("ByteLevel", [decoders.ByteLevel(), decoders.Replace("e t", "#"), decoders.Replace("##", "=")]),
    "suffix and Fuse": ("BPE with suffix", [decoders.BPEDecoder(), decoders.Fuse()]),
}


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_decoders_of_any_kind(name: str, data: st.DataObject) -> None:
    kind, parts = DECODERS[name]
    library = Tokenizer.from_str(_trained(kind))
    library.decoder = decoders.Sequence(parts)
    ours = HuggingFaceTokenizer(json.loads(library.to_str()))
    words = st.sampled_from([i for text in TEXTS for i in library.encode(text, add_special_tokens=False).ids])
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size()) | words, max_size=90))
    assert stream(ours, [], ids) == library.decode(ids)


def test_text_that_is_held_is_not_lost_behind_tokens_without_any() -> None:
    library = Tokenizer(models.WordLevel({"a": 0, "": 1, "b": 2}, unk_token="a"))
    library.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("abbbb", "x")])
    ours = HuggingFaceTokenizer(json.loads(library.to_str()))
    assert stream(ours, [], [0, *[1] * 300, 2]) == library.decode([0, *[1] * 300, 2])
