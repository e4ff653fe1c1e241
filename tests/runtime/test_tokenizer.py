"""Tokenizers of every kind: the ids of `transformers`, bos tokens, panics of the library."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xlstm_edge_runtime import BundleError, InputError
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, encode_text, load_tokenizer

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
    with pytest.raises(InputError, match=f"got the tokenizer's id {last}"):
        encode_text(ours, "the <tool>", last)


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
