"""Generation with a fake session that records what it was fed, and on real bundles."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import Finish, InputError, Token
from xlstm_edge_runtime import generate as module
from xlstm_edge_runtime.generate import Event
from xlstm_edge_runtime.options import GenerationOptions
from xlstm_edge_runtime.sampling import SamplingOptions

from ..conftest import BY_NAME
from ..oracles.cases import Case

VOCAB = 16


class Fake:
    """Logits are a function of everything fed so far; the feed is kept."""

    vocab_size, chunk = VOCAB, 3

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.calls: list[int] = []

    def logits(self) -> NDArray[np.float32]:
        return np.random.default_rng(self.fed).normal(size=VOCAB).astype(np.float32)

    def check_ids(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        ids = np.array(tokens, np.int64)
        if not len(ids) or ids.max() >= VOCAB:
            raise InputError("expected at least one token, got none; begin with a prompt")
        return ids

    def advance(self, tokens: NDArray[np.int64] | int) -> NDArray[np.float32]:
        part = [tokens] if isinstance(tokens, int) else tokens.tolist()
        assert 1 <= len(part) <= self.chunk
        self.fed += part
        self.calls.append(len(part))
        return self.logits()


def generate(
    session: Fake,
    prompt: Sequence[int],
    *,
    cancel: Callable[[], bool] | None = None,
    on_prompt: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Any:
    return module.generate(session, prompt, GenerationOptions(**options).resolve(), cancel=cancel, on_prompt=on_prompt)


def plain(count: int, prompt: list[int]) -> list[int]:
    """Greedy by hand."""
    fake, out = Fake(), []
    fake.fed += prompt
    logits = fake.logits()
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits = fake.advance(out[-1])
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
    assert fake.fed == ([1, *seen] if after else [])  # asked before the prompt, too


def test_a_consumer_that_walks_away_leaves_the_session_right() -> None:
    fake, seen = Fake(), []
    events = generate(fake, [1], max_tokens=50)
    for event in events:
        assert isinstance(event, Token)
        seen.append(event.id)
        if len(seen) == 4:
            break
    events.close()
    assert fake.fed == [1, *seen]
    rest = [event.id for event in generate(fake, [9], max_tokens=3) if isinstance(event, Token)]
    assert rest == plain(3, [1, *seen, 9])


def test_a_token_is_fed_before_it_is_seen() -> None:
    fake = Fake()
    events = generate(fake, [1, 2], max_tokens=5)
    seen = []
    for event in events:
        if isinstance(event, Token):
            seen.append(event.id)
            assert fake.fed == [1, 2, *seen]
            if len(seen) == 3:
                break
    fake.fed.append(7)  # someone else goes on with the session
    events.close()
    del events
    assert fake.fed == [1, 2, *seen, 7]


BAD: list[dict[str, Any]] = [
    {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": True}, {"min_tokens": -1}, {"stop_ids": 5}, {"stop_ids": "a"},
    {"stop_ids": [1.5]}, {"temperature": -1}, {"logit_bias": [1]}, {"logit_bias": {"a": 1}}, {"logit_bias": {VOCAB: 1.0}},
    {"logit_bias": {1: float("inf")}}, {"logit_bias": {1: float("nan")}}, {"logit_bias": {1: 1e39}}, {"banned": 5},
    {"banned": [VOCAB]}, {"banned": [-1]}, {"banned": [1.5]}, {"banned": range(VOCAB)}, {"seed": 2**64}, {"top_k": -1},
    {"min_tokens": 1, "stop_ids": range(VOCAB)}, {"seed": 10**5000},
    {"max_tokens": -(10**5000)}, {"banned": [10**5000]},
    {"cancel": 5}, {"on_prompt": "x"}, {"ignore_eos": "no"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_bad_options_fail_at_the_call_before_anything_is_fed(bad: dict[str, Any]) -> None:
    fake = Fake()
    with pytest.raises(InputError, match="got"):
        generate(fake, [1], **bad)
    assert not fake.fed


@pytest.mark.parametrize("prompt", [[], [VOCAB]], ids=str)
def test_bad_prompts_fail_at_the_call(prompt: list[int]) -> None:
    fake = Fake()
    with pytest.raises(InputError):
        generate(fake, prompt, max_tokens=1)
    assert not fake.fed


def test_long_prompts_tell_how_far_they_are() -> None:
    fake, told = Fake(), []
    list(generate(fake, [1] * 8, max_tokens=0, on_prompt=lambda done, total: told.append((done, total))))
    assert told == [(0, 8), (3, 8), (6, 8), (8, 8)]
    assert fake.calls == [3, 3, 2]


@pytest.mark.parametrize(("asked", "read"), [(0, 0), (1, 3), (2, 6)])
def test_a_prompt_can_be_cancelled_between_its_chunks(asked: int, read: int) -> None:
    fake, answers = Fake(), [False] * asked + [True]
    (finish,) = generate(fake, [1] * 8, cancel=lambda: answers.pop(0))
    assert finish.reason == "cancelled"
    assert finish.usage == xr.Usage(read, 0)
    assert fake.fed == [1] * read


def test_an_exception_out_of_the_prompt_leaves_whole_chunks() -> None:
    fake = Fake()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(generate(fake, [1] * 8, on_prompt=stop))
    assert fake.fed == [1] * 3


def test_given_options_go_over_the_bundle_s() -> None:
    defaults = {"temperature": 0.7, "top_k": 5}
    merged = GenerationOptions(top_k=0, temperature=None, stop_ids=[3]).resolve(defaults, (1, 2))
    assert merged.sampling == SamplingOptions(temperature=0.7, top_k=0)
    assert merged.stop_ids == {1, 2, 3}
    assert GenerationOptions(stop_ids=[3], ignore_eos=True).resolve(eos_ids=(1, 2)).stop_ids == {3}
    assert GenerationOptions(ignore_eos=True).resolve(eos_ids=(1, 2)).stop_ids == frozenset()
    assert GenerationOptions().resolve().max_tokens == 256


def test_penalties_see_the_prompt() -> None:
    for missing in (0, 9, 15):
        prompt = [token for token in range(VOCAB) if token != missing]
        first, *_ = generate(Fake(), prompt, max_tokens=1, presence_penalty=100.0)
        assert first.id == missing
    first, *_ = generate(Fake(), prompt, max_tokens=1, presence_penalty=100.0, penalty_window=3)
    assert first.id == int(np.argmax(logits_after(prompt) - 100 * np.isin(np.arange(VOCAB), prompt[-3:])))


def logits_after(fed: list[int]) -> NDArray[np.float32]:
    fake = Fake()
    fake.fed = list(fed)
    return fake.logits()


def test_the_finish_says_which_id_ended_it() -> None:
    stop = plain(1, [3])[0]
    (finish,) = generate(Fake(), [3], stop_ids=[stop])
    assert (finish.reason, finish.stop_id) == ("eos", stop)


class Broken(Fake):
    """A NaN at a stop id."""

    def logits(self) -> NDArray[np.float32]:
        logits = super().logits()
        logits[4] = np.nan
        return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nan_at_a_stop_id_is_seen_before_min_tokens(temperature: float) -> None:
    with pytest.raises(xr.VerificationError, match="finite"):
        list(generate(Broken(), [1], min_tokens=5, stop_ids=[4], temperature=temperature, seed=0))


OPTIONS = (
    "max_tokens min_tokens stop_ids ignore_eos temperature top_k top_p min_p seed repetition_penalty presence_penalty "
    "frequency_penalty penalty_window logit_bias banned cancel on_prompt"
).split()


def test_every_entry_has_the_same_options() -> None:
    entries = [xr.Session.generate, xr.Model.stream, xr.stream_text]
    shared = []
    for entry in entries:
        parameters = inspect.signature(entry).parameters
        assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        shared.append({n: (p.kind, p.default) for n, p in parameters.items() if n in OPTIONS})
        assert list(shared[-1]) == OPTIONS
    assert shared[0] == shared[1] == shared[2]
    fields = set(inspect.signature(SamplingOptions).parameters)
    assert fields < set(OPTIONS)


@pytest.fixture
def session(bundle_of: Callable[[Case, str], Path]) -> xr.Session:
    return xr.load(bundle_of(BY_NAME["lm-mixed"], "cpu"), threads=1).session()


def ids_of(events: Any) -> list[int]:
    found: list[Event] = list(events)
    assert isinstance(found[-1], Finish)
    return [event.id for event in found if isinstance(event, Token)]


def test_a_snapshot_after_break_has_what_was_seen(session: xr.Session, tmp_path: Path) -> None:
    whole = ids_of(session.fork().generate([5, 17], max_tokens=12))
    seen = []
    for event in session.generate([5, 17], max_tokens=12):
        if isinstance(event, Token):
            seen.append(event.id)
            if len(seen) == 5:
                session.save(tmp_path / "state")
                break
    other = session.model.session()
    other.load(tmp_path / "state")
    assert other.tokens == session.tokens == 7
    fresh = session.model.session()
    fresh.prefill([5, 17, *seen])
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(fresh.state.values(), other.state.values(), strict=True))
    # the logits after the fifth token are gone with the generator; one more token, fed again by hand, says the same
    assert other.step(whole[5]).argmax() == whole[6]


def test_a_stack_of_vectors_generates_nothing(bundle_of: Callable[[Case, str], Path]) -> None:
    stack = xr.load(bundle_of(BY_NAME["stack-mixed"], "cpu"), threads=1).session()
    with pytest.raises(InputError, match="stack of float vectors"):
        stack.generate([1, 2])
    with pytest.raises(InputError, match="stack of float vectors"):
        xr.stream_text(stack, "hello")
    assert stack.tokens == 0


def test_real_sessions_check_at_the_call(session: xr.Session) -> None:
    for prompt, options in (([97], {}), ([], {}), ([1], {"banned": [97]}), ([1], {"temperature": -1}), ("ab", {})):
        with pytest.raises(InputError):
            session.generate(prompt, **options)  # type: ignore[arg-type]  # wrong on purpose
    assert session.tokens == 0
    with pytest.raises(TypeError):
        session.generate([1], beams=4)  # type: ignore[call-arg]  # wrong on purpose


def test_outputs_are_the_caller_s_own(session: xr.Session) -> None:
    kept = [session.step(token) for token in (3, 1, 4, 1, 5)]
    again = session.model.session()
    for output, token in zip(kept, (3, 1, 4, 1, 5), strict=True):
        assert np.array_equal(output, again.step(token))
    kept[0][:] = 0
    first = again.prefill([1, 2])
    copy = first.copy()
    again.prefill([3, 4, 5])
    assert np.array_equal(first, copy)
    assert first.flags.writeable and first.flags.owndata
