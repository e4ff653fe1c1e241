"""Every kind of tokenizer against the libraries: the ids of transformers, streams that are decode, whatever the ids."""

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xlstm_edge_runtime import BundleError, InputError
from xlstm_edge_runtime.decode import LONGEST_RUN
from xlstm_edge_runtime.growth import check_growth
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, encode_text, load_tokenizer

from .oracles.tokenizers import KINDS, TEXTS

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
def test_ids_are_those_of_transformers(kind: str, load: Load) -> None:
    ours, _, reference = load(kind)
    for text in [*TEXTS, "", " ".join(TEXTS), "a<|im_end|>b <tool> c<s>", "word " * 100]:
        assert ours.encode(text) == reference(text)["input_ids"], text
        assert ours.encode(text, special=False) == reference(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_pieces_are_the_decoded_whole(kind: str, load: Load) -> None:
    ours, _, reference = load(kind)
    for prompt in TEXTS:
        for text in TEXTS:
            first, then = ours.encode(prompt), ours.encode(text, special=False)
            whole = reference.decode([*first, *then], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            begun = reference.decode(first, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert begun + stream(ours, first, then) == whole, (prompt, text)
            assert ours.decode([*first, *then]) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_may_end_anywhere(kind: str, load: Load) -> None:
    ours, _, _ = load(kind)
    ids = ours.encode(" ".join(TEXTS) + " the cat sat on the mat, and ran." * 3)
    whole = ours.decode(ids)
    for cut in range(len(ids) + 1):
        begun = ours.decode(ids[:cut])
        if not begun.endswith("\ufffd"):  # in the middle of a character there is no text to go on from
            assert begun + stream(ours, ids[:cut], ids[cut:]) == whole, cut


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


def test_bytes_are_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([104, 105, 256, -1, 0xC3]) == "hi\ufffd"
    decoder = tokenizer.stream([0xC3])
    assert decoder.push(0xA9) == "é"
    assert [decoder.push(token) for token in (300, -5, 10**20)] == ["", "", ""]


def test_a_bos_is_neither_lost_nor_doubled(load: Load) -> None:
    ours, _library, _ = load("ByteLevel")
    plain = ours.encode("the cat")
    assert encode_text(ours, "the cat", 500, bos=2) == [2, *plain]
    assert encode_text(ours, "the cat", 500, bos=2, start=False) == plain
    assert encode_text(ours, "</s>the cat", 500, bos=2) == [2, *plain]
    begins, _, _ = load("post-processor with bos")
    assert begins.encode("the cat") == [1, *plain]
    for bos in (1, 2, None):  # a manifest's bos, right or wrong, comes on top of nothing
        assert encode_text(begins, "the cat", 500, bos=bos) == [1, *plain]
    assert encode_text(begins, "the cat", 500, start=False) == plain


def test_ids_that_the_model_lacks_are_refused_when_they_come(load: Load) -> None:
    ours, _library, _ = load("ByteLevel")
    last = ours.added["<tool>"]
    assert last == ours.vocab_size - 1
    assert encode_text(ours, "the cat", last) == ours.encode("the cat")
    with pytest.raises(InputError, match=f"came the tokenizer's id {last}"):
        encode_text(ours, "the <tool>", last)


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


def test_a_library_that_panics_is_an_error_of_the_bundle(load: Load, tmp_path: Path) -> None:
    broken = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    broken.pre_tokenizer = pre_tokenizers.Whitespace()
    broken.decoder = decoders.Strip("a", 1, 1)  # the library's own code panics on the text "a"
    broken.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer("huggingface", tmp_path / "tokenizer.json")
    with pytest.raises(BaseException, match="slice index"):
        broken.decode([0])
    assert ours.decode([0, 1]) == "ab"
    decoder = ours.stream([0])
    assert isinstance(decoder.push(0) + decoder.push(1) + decoder.flush(), str)


class Panics:
    """A stand-in for the library's tokenizer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode(self, *words: Any, **options: Any) -> Any:
        raise self.error


def test_panics_become_errors_and_ctrl_c_stays(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, _ = load("ByteLevel")
    panic = type("PanicException", (BaseException,), {})
    monkeypatch.setattr(ours, "_tokenizer", Panics(panic("index out of bounds\x1b[31m")))
    with pytest.raises(BundleError, match="index out of bounds") as caught:
        ours.encode("a")
    assert "\x1b" not in str(caught.value)
    monkeypatch.setattr(ours, "_tokenizer", Panics(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        ours.encode("a")


def test_processors_that_only_end_a_text_do_not_begin_it() -> None:
    library = KINDS["ByteLevel"]()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    ours = HuggingFaceTokenizer(json.loads(library.to_str()))
    assert not ours.begins_texts
    assert encode_text(ours, "a", 500, bos=1) == [1, *ours.encode("a")]
