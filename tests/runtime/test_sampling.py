"""Sampling against slow, obviously right references, and against a second implementation of its specification."""

import json
import math
import shutil
import subprocess
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xlstm_edge_runtime import InputError, Sampler, SamplingOptions, VerificationError, exact_math

from ..arm64.on_board import golden_ids

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
    got = np.bincount([sampler(LOGITS) for _ in range(count)], minlength=VOCAB) / count
    expected = distribution(LOGITS, options)
    assert not got[expected == 0].any()
    assert np.abs(got - expected).max() < 4 * np.sqrt(0.25 / count)


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


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sampling.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["options"]))
def test_golden_ids(case: dict[str, Any]) -> None:
    assert golden_ids(case) == case["ids"]


@pytest.mark.skipif(shutil.which("node") is None, reason="JavaScript needs node")
def test_the_specification_is_enough_for_another_language() -> None:
    words = ["node", str(GOLDEN.with_suffix(".js")), str(GOLDEN)]
    got = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert json.loads(got) == [case["ids"] for case in CASES]


def test_random_numbers_are_splitmix64() -> None:
    random = exact_math.SplitMix64(1234567)  # the published test vector of the algorithm
    assert [random.next() for _ in range(5)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    random = exact_math.SplitMix64(0)
    draws = [random.below(3) for _ in range(3000)]
    assert set(draws) == {0, 1, 2}
    assert min(draws.count(value) for value in range(3)) > 900


def test_weights_are_the_exponential() -> None:
    getcontext().prec = 40
    x = np.concatenate([-np.random.default_rng(0).random(500) * 24, [0.0, -1e-300, -24.0, -24.0001, -np.inf, -1e308]])
    got = exact_math.weights(x.copy())
    for value, weight in zip(x, got, strict=True):
        true = Decimal(float(value)).exp() * 2**32 if math.isfinite(value) else Decimal(0)
        assert abs(int(weight) - true) <= 1 + true * Decimal("1e-10"), value
    assert got[500] == 2**32
    assert (got[-2:] == 0).all()


def slow(logits: NDArray[np.float32], options: SamplingOptions, random: exact_math.SplitMix64) -> int:
    """The specification, line by line, one id at a time."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))[: options.top_k or None]
    top = float(logits[order[0]])

    def weight(x: float) -> int:
        return int(exact_math.weights(np.array([x]))[0])

    w = {i: weight(float(logits[i]) - top) for i in order}
    if options.top_p < 1:
        wanted, kept, total = options.top_p * float(sum(w.values())), [], 0
        for i in order:
            if total >= wanted:
                break
            kept.append(i)
            total += w[i]
        order = kept
    order = [i for i in order if w[i] >= options.min_p * 2**32]
    if options.temperature != 1:
        w = {i: weight((float(logits[i]) - top) / options.temperature) for i in order}
    r = random.below(sum(w[i] for i in order))
    for i in sorted(order):
        r -= w[i]
        if r < 0:
            return i
    raise AssertionError


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 1.0, 3.0]) | st.floats(-30, 30, width=32), min_size=1, max_size=200),
    st.sampled_from([0, 1, 2, 5, 64, 70]), st.sampled_from([1.0, 0.9, 0.5, 1e-9]), st.sampled_from([0.0, 0.05, 1.0]),
    st.sampled_from([1.0, 0.3, 2.0, 1e-300]), st.integers(0, 2**64 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_ids_follow_the_specification(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    logits = np.array(values, np.float32)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    sampler, random = Sampler(options, len(values)), exact_math.SplitMix64(seed)
    for _ in range(3):
        assert sampler(logits) == slow(logits, options, random)


def test_candidates_are_ordered_by_their_logits_not_by_rounded_differences() -> None:
    logits = np.array([0.0, 3.0, 1e-30], np.float32)  # 1e-30 - 3 is -3 in doubles
    sampler = Sampler(SamplingOptions(temperature=1.0, top_p=0.93, seed=0), 3)
    assert {sampler(logits) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize("vocab", [3, 65, 5000])
def test_ties_go_to_the_lower_id(vocab: int) -> None:
    logits = np.zeros(vocab, np.float32)
    assert Sampler(SamplingOptions(), vocab)(logits) == 0
    seen = {Sampler(SamplingOptions(temperature=1.0, top_k=2, seed=seed), vocab)(logits) for seed in range(40)}
    assert seen == {0, 1}
    nucleus = SamplingOptions(temperature=1.0, top_p=1.5 / vocab, seed=0)
    sampler = Sampler(nucleus, vocab)
    assert {sampler(logits) for _ in range(40)} == {0, 1}


def test_without_a_seed_each_run_is_another() -> None:
    runs = {tuple(Sampler(SamplingOptions(temperature=1.0), VOCAB)(LOGITS) for _ in range(2)) for _ in range(40)}
    assert len(runs) > 5


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    prompt = [3, 7, 7, 12, 49, 3]
    sampler = Sampler(SamplingOptions(repetition_penalty=penalty, penalty_window=1000), VOCAB, prompt=prompt)
    ids, processor = list(prompt), RepetitionPenaltyLogitsProcessor(penalty)
    for step in range(30):
        logits = np.random.default_rng(step).normal(0, 0.5, VOCAB).astype(np.float32)
        scores = processor(torch.tensor([ids]), torch.tensor(logits[None]))[0].numpy()
        token = sampler(logits)
        assert token == int(scores.argmax())
        ids.append(token)


def test_the_window_is_the_last_tokens_of_prompt_and_text() -> None:
    options = SamplingOptions(presence_penalty=0.1, frequency_penalty=1.0, penalty_window=5)
    sampler, ids = Sampler(options, VOCAB, prompt=[1, 2, 1, 3, 4, 4, 1]), [1, 2, 1, 3, 4, 4, 1]
    for step in range(200):
        logits = np.random.default_rng(step).normal(0, 1, VOCAB).astype(np.float32)
        expected = logits.astype(np.float64)
        for token in set(ids[-5:]):
            expected[token] -= 0.1 + ids[-5:].count(token)
        ids.append(sampler(logits))
        assert ids[-1] == int(expected.astype(np.float32).argmax())
    nothing = Sampler(SamplingOptions(frequency_penalty=9.0, penalty_window=0), VOCAB, prompt=[int(LOGITS.argmax())])
    assert nothing(LOGITS) == nothing(LOGITS) == int(LOGITS.argmax())


def test_a_ban_of_everything_is_refused() -> None:
    with pytest.raises(InputError, match="ban of all"):
        Sampler(SamplingOptions(banned=range(4)), 4)
    with pytest.raises(InputError, match="ban of all"):
        Sampler(SamplingOptions(banned=[0, 1], logit_bias={2: -math.inf}), 4, late=[3])


OUT_OF_RANGE = [
    ("temperature", -1e-9), ("temperature", 1.1e4), ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0.0),
    ("presence_penalty", 1.1e4), ("presence_penalty", -1.1e4), ("frequency_penalty", 1.1e4), ("frequency_penalty", "x"),
    ("top_k", -1), ("top_k", 2**31), ("top_k", True), ("penalty_window", -1), ("penalty_window", 2**20), ("seed", 2**64),
    ("seed", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_an_option_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^expected {name} "):
        SamplingOptions(**{name: value})


def test_truth_is_no_id() -> None:
    with pytest.raises(InputError, match="logit_bias"):
        Sampler(SamplingOptions(banned=[True]), 9)
    assert SamplingOptions().penalty_window == 64


@pytest.mark.parametrize(("logit", "penalty"), [(3e38, 1e-4), (-3e38, 1e4)])
def test_penalties_beyond_float32_are_told_in_one_sentence_or_do_not_matter(logit: float, penalty: float) -> None:
    """Without a warning, which would fail here."""
    sampler = Sampler(SamplingOptions(repetition_penalty=penalty), 2, prompt=[0])
    if logit < 0:
        assert sampler(np.array([logit, 1], np.float32)) == 1
    else:
        with pytest.raises(VerificationError, match="expected finite logits, got inf"):
            sampler(np.array([logit, 1], np.float32))
