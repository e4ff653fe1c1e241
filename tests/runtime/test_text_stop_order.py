"""Stop strings that mix text in byte tokens with special tokens: what comes first counts first."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from xlstm_edge_runtime.generate import Finish, Timings, Token, Usage
from xlstm_edge_runtime.text import Piece, StopMatcher, _stream
from xlstm_edge_runtime.tokenizer import HuggingFaceTokenizer

VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "<0xC3>": 3, "<0xA9>": 4, "<0xFF>": 5}


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    library = Tokenizer(models.BPE(VOCABULARY, [], byte_fallback=True, unk_token="<unk>"))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<|x|>"])
    return HuggingFaceTokenizer(json.loads(library.to_str()))


def shown(tokenizer: HuggingFaceTokenizer, ids: Sequence[int], stop: list[str]) -> tuple[str, bool]:
    """The text of these ids up to a stop string, and whether one was met."""
    matcher = StopMatcher(stop)

    def events() -> Any:
        for index, token in enumerate(ids):
            if matcher.hit:
                break
            yield Token(token, index)
        yield Finish("length", Usage(0, len(ids)), Timings(0, 0))

    found = list(_stream(events(), tokenizer, tokenizer.stream(), matcher, frozenset()))
    return "".join(event.text for event in found if isinstance(event, Piece)), matcher.hit


@pytest.mark.parametrize(
    ("stop", "text", "hit"),
    [
        (["a<|x|>"], "aéb", False),
        (["é<|x|>"], "a", True),
        (["aé<|x|>b"], "", True),
        (["<|x|>b"], "aé", True),
        (["<|x|>é"], "aéb", False),
        (["z"], "aéb", False),
        ([], "aéb", False),
    ],
)
def test_text_in_bytes_comes_before_the_special_token_behind_it(
    stop: list[str], text: str, hit: bool, tokenizer: HuggingFaceTokenizer
) -> None:
    assert shown(tokenizer, [1, 3, 4, 6, 2], stop) == (text, hit)


def test_an_unfinished_character_goes_on_behind_a_special_token(tokenizer: HuggingFaceTokenizer) -> None:
    """As decoding the whole does."""
    ids = [1, 3, 6, 4, 2]
    assert tokenizer.decode(ids) == "aéb"
    assert shown(tokenizer, ids, ["zz"]) == ("aéb", False)
    wrong = [1, 5, 6, 2]
    assert shown(tokenizer, wrong, ["zz"]) == (tokenizer.decode(wrong), False)
