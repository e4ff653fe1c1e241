"""Generation with a fake session that records what it was fed."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from xlstm_edge_runtime import Finish, InputError, Token
from xlstm_edge_runtime.generate import generate

VOCAB = 16


class Fake:
    """Logits are a function of everything fed so far; the feed is kept."""

    def __init__(self) -> None:
        self.fed: list[int] = []

    def logits(self) -> NDArray[np.float32]:
        return np.random.default_rng(self.fed).normal(size=VOCAB).astype(np.float32)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if not len(tokens):
            raise InputError("expected at least one token, came none; begin with a prompt")
        self.fed += list(tokens)
        return self.logits()

    def step(self, token: int) -> NDArray[np.float32]:
        self.fed.append(token)
        return self.logits()


def plain(count: int, prompt: list[int]) -> list[int]:
    """Greedy by hand."""
    fake, out = Fake(), []
    logits = fake.prefill(prompt)
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits = fake.step(out[-1])
    return out


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5), st.integers(0, 20))
def test_greedy_is_the_plain_loop(prompt: list[int], count: int) -> None:
    fake = Fake()
    *tokens, finish = generate(fake, prompt, max_tokens=count)
    ids = [event.id for event in tokens if isinstance(event, Token)]
    assert ids == plain(count, prompt)
    assert fake.fed == prompt + ids
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.generated_tokens) == ("length", len(prompt), count)
    assert [event.index for event in tokens if isinstance(event, Token)] == list(range(count))


def test_a_stop_id_is_neither_emitted_nor_fed() -> None:
    expected = plain(10, [1, 2])
    stop = expected[4]
    at = expected.index(stop)
    fake = Fake()
    *tokens, finish = generate(fake, [1, 2], max_tokens=10, stop_ids=[stop])
    assert isinstance(finish, Finish)
    assert finish.reason == "eos"
    assert len(tokens) == at == finish.usage.generated_tokens
    assert fake.fed == [1, 2, *expected[:at]]


def test_min_tokens_keeps_stop_ids_away() -> None:
    stop = plain(1, [3])[0]
    *tokens, _ = generate(Fake(), [3], max_tokens=8, min_tokens=3, stop_ids=[stop])
    ids = [event.id for event in tokens if isinstance(event, Token)]
    assert len(ids) >= 3
    assert stop not in ids[:3]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancellation_takes_effect_at_a_token_border(after: int) -> None:
    fake, seen = Fake(), []
    for event in generate(fake, [1], max_tokens=50, cancel=lambda: len(seen) >= after):
        if isinstance(event, Token):
            seen.append(event.id)
        else:
            assert event.reason == "cancelled"
    assert len(seen) == after
    assert fake.fed == [1, *seen]


def test_a_consumer_that_walks_away_leaves_the_session_right() -> None:
    fake, seen = Fake(), []
    events = generate(fake, [1], max_tokens=50)
    for event in events:
        assert isinstance(event, Token)
        seen.append(event.id)
        if len(seen) == 4:
            break
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert fake.fed == [1, *seen]
    rest = [event.id for event in generate(fake, [9], max_tokens=3) if isinstance(event, Token)]
    assert rest == plain(3, [1, *seen, 9])


@pytest.mark.parametrize("bad", [{"max_tokens": -1}, {"max_tokens": 1.5}, {"min_tokens": -1}, {"beams": 4}], ids=str)
def test_bad_options_fail_before_anything_is_fed(bad: dict[str, object]) -> None:
    fake = Fake()
    with pytest.raises(InputError):
        generate(fake, [1], **bad)  # type: ignore[arg-type]
    assert not fake.fed


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError):
        next(generate(Fake(), [], max_tokens=1))
