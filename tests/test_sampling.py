"""Sampling against slow, obviously right references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xlstm_edge_runtime import InputError, Sampler, SamplingOptions, VerificationError

VOCAB = 50
LOGITS = np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)


def distribution(logits: NDArray[np.float32], options: SamplingOptions) -> NDArray[np.float64]:
    """The textbook: sort everything, filter in order, renormalize."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    kept = list(order[: options.top_k]) if options.top_k else list(order)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    total, running, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        running += weights[i]
        if running >= options.top_p * total:
            break
    kept = [i for i in nucleus if weights[i] >= options.min_p * weights.max()]
    result = np.zeros(len(logits))
    result[kept] = np.exp((logits[kept].astype(np.float64) - logits.max()) / options.temperature)
    return result / result.sum()


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0, seed=1),
        SamplingOptions(temperature=0.7, seed=1),
        SamplingOptions(temperature=1.0, top_k=5, seed=1),
        SamplingOptions(temperature=1.3, top_p=0.8, seed=1),
        SamplingOptions(temperature=1.0, min_p=0.1, seed=1),
        SamplingOptions(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, seed=1),
    ],
    ids=str,
)
def test_frequencies_follow_the_textbook(options: SamplingOptions) -> None:
    sampler, count = Sampler(options, VOCAB), 20_000
    came = np.bincount([sampler(LOGITS) for _ in range(count)], minlength=VOCAB) / count
    expected = distribution(LOGITS, options)
    assert not came[expected == 0].any()
    assert np.abs(came - expected).max() < 4 * np.sqrt(0.25 / count)


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=300), st.floats(0.05, 0.99), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_nucleus_holds_for_any_logits(values: list[float], top_p: float, seed: int) -> None:
    logits, options = np.array(values, np.float32), SamplingOptions(temperature=1.0, top_p=top_p, seed=seed)
    token = Sampler(options, len(values))(logits)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    before = weights[weights > weights[token]].sum()
    assert before < top_p * weights.sum() * (1 + 1e-9)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=100))
@settings(deadline=None)
def test_greedy_is_argmax_and_leaves_the_logits(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    copy = logits.copy()
    logits.flags.writeable = False
    assert Sampler(SamplingOptions(), len(values))(logits) == int(np.argmax(copy))
    assert np.array_equal(logits, copy)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed), VOCAB)
        return [sampler(LOGITS) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_penalties_follow_their_formulas() -> None:
    options = SamplingOptions(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, penalty_window=3)
    sampler = Sampler(options, 4)
    assert sampler(np.array([4, 3, -1, 0], np.float32)) == 0
    # id 0 now has 4 / 2 - 0.5 - 0.25 = 1.25
    assert sampler(np.array([4, 1.2, -1, 0], np.float32)) == 0
    # twice: 4 / 2 - 0.5 - 0.5 = 1.0
    assert sampler(np.array([4, 1.2, -1, 0], np.float32)) == 1
    # a negative logit is multiplied: -1 * 2 - 0.5 - 0.25 = -2.75 for id 1
    assert sampler(np.array([-9, -1, -2.7, -9], np.float32)) == 2
    # the window of three holds 0, 1, 2: the first 0 is forgotten
    assert sampler(np.array([4, 1.2, -9, -9], np.float32)) == 0


def test_bias_and_ban() -> None:
    assert Sampler(SamplingOptions(logit_bias={3: 100.0}), VOCAB)(LOGITS) == 3
    best = int(np.argmax(LOGITS))
    assert Sampler(SamplingOptions(banned=[best]), VOCAB)(LOGITS) == int(np.argsort(-LOGITS)[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2},
        {"seed": -1},
        {"repetition_penalty": 0},
        {"penalty_window": -1},
        {"presence_penalty": float("inf")},
        {"mirostat": 2},
        {"temperature": True},
    ],
    ids=str,
)
def test_senseless_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplingOptions.from_mapping(bad)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match="99"):
        Sampler(SamplingOptions(banned=[99]), VOCAB)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), float("inf")])
def test_broken_logits_are_an_error_not_a_token(temperature: float, value: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=0), 4)
    with pytest.raises(VerificationError, match="finite logits"):
        sampler(np.full(4, value, np.float32))


def test_one_nan_among_good_logits_is_seen() -> None:
    logits = LOGITS.copy()
    logits[7] = np.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(VerificationError):
            Sampler(SamplingOptions(temperature=temperature, seed=0), VOCAB)(logits)
