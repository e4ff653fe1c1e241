"""The oracles agree: float64 numpy from the equations, and the official packages; and every swap would be seen.

Bounds are shares of the range (max - min) of the expected outputs.
"""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file

from ..oracles import v1 as v1_blocks
from ..oracles.cases import V1
from ..oracles.known_mistakes import ANY, EPS, KNOWN_MISTAKES, NUMBERS, Number, changed
from ..oracles.official import (
    CASES,
    LIMITS,
    Case,
    limit,
    make_checkpoint,
    official_parallel,
    official_states,
    official_step,
    run_parallel,
    run_steps,
    sequence_of,
)
from ..oracles.recurrence import ACTIVATIONS, MLSTMCell, SLSTMCell, rms_norm, sigmoid
from ..oracles.reference import Reference, reference

FLOAT32 = 1e-4  # two float32 forms of one model differ by up to 1.5e-5
FLOAT64 = 1e-9
LENGTH = 64
HALVED = ["lm-mixed", "lm-five-heads", "lm-hf-tied", "stack-slstm", "large-three-heads", "large-fused", "hf-one-head"]
BY_NAME = {case.name: case for case in CASES}
Floats = NDArray[np.floating[Any]]
Stored = Callable[..., Path]

torch.set_num_threads(1)


def runnable(path: Any) -> list[Case]:
    """The cases without a stated limit on this official path."""
    return [case for case in CASES if limit(case, path) is None]


def error(got: Floats | None, expected: Floats) -> float:
    """Largest difference as a share of the expected range; NaN anywhere is an infinite error."""
    assert got is not None
    assert got.shape == expected.shape
    share = float(np.abs(got - expected).max() / np.ptp(expected))
    return share if np.isfinite(share) else float("inf")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """(case, dtype) -> its checkpoint folder, made once."""

    @cache
    def make(name: str, dtype: str) -> Path:
        return make_checkpoint(BY_NAME[name], tmp_path_factory.mktemp(name) / "checkpoint", dtype)

    return lambda case, dtype="float32": make(case.name, dtype)


@pytest.mark.parametrize("case", runnable("step"), ids=str)
def test_steps_and_states_are_the_official_ones(case: Case, stored: Stored) -> None:
    folder, sequence = stored(case), sequence_of(case, LENGTH)
    model = reference(folder)
    expected = model.run(sequence)
    assert error(official_step(case, folder, sequence), expected) <= FLOAT32
    assert error(official_step(case, folder, sequence, "float64"), expected) <= FLOAT64
    states = official_states(case, folder, sequence, "float64")
    assert states is not None and states.keys() == model.state().keys()
    for name, wanted in model.state().items():
        assert states[name].shape == wanted.shape
        np.testing.assert_allclose(states[name], wanted, rtol=0, atol=FLOAT64 * max(1.0, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("case", runnable("parallel"), ids=str)
def test_outputs_are_those_of_the_official_parallel_form(case: Case, stored: Stored) -> None:
    folder, sequence = stored(case), sequence_of(case, LENGTH)
    assert error(official_parallel(case, folder, sequence), reference(folder).run(sequence)) <= FLOAT32
    model = reference(folder)
    if case.family in V1:  # the v1 parallel form has no initial m: it is the recurrence from m = -inf
        for block in model.blocks:
            block.cell.m[:] = -1e30
    assert error(official_parallel(case, folder, sequence, "float64"), model.run(sequence)) <= FLOAT64


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_has_an_official_path_and_the_stated_limits_hold(case: Case, stored: Stored) -> None:
    folder, sequence = stored(case), sequence_of(case, LENGTH)
    assert limit(case, "step") is None or limit(case, "parallel") is None
    if limit(case, "step"):
        assert official_step(case, folder, sequence) is None
        with pytest.raises((RuntimeError, AssertionError)):
            run_steps(case, folder, sequence, "float32")
    if limit(case, "parallel"):
        assert official_parallel(case, folder, sequence) is None
        with pytest.raises((RuntimeError, AssertionError)):
            run_parallel(case, folder, sequence, "float32")


def test_every_limit_is_met_by_a_case() -> None:
    assert all(any(entry.applies(case) for case in CASES) for entry in LIMITS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_say_something(case: Case, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget gates from nearly 0 to nearly 1, outputs of a healthy range, no weight at zero or at its neutral value."""
    seen: list[Floats] = []
    step, raw = MLSTMCell.step, SLSTMCell.raw

    def spy_step(cell: MLSTMCell, *inputs: Any) -> Any:
        seen.append(sigmoid(inputs[-1]).reshape(-1))
        return step(cell, *inputs)

    def spy_raw(cell: SLSTMCell, wx: Any) -> Any:
        gates = raw(cell, wx)
        seen.append(sigmoid(gates[1]).reshape(-1))
        return gates

    monkeypatch.setattr(MLSTMCell, "step", spy_step)
    monkeypatch.setattr(SLSTMCell, "raw", spy_raw)
    model = reference(stored(case))
    outputs = model.run(sequence_of(case, LENGTH))
    forget = np.concatenate(seen)
    assert forget.min() < 0.1 and forget.max() > 0.9 and forget.std() > 0.2
    assert np.ptp(outputs) > 1.0 and outputs.std(axis=0).min() > 0.05
    cap = model.config.logit_cap
    assert case.family not in {"xlstm_large", "xlstm_hf"} or cap is None or np.abs(outputs).max() < 0.95 * cap


@pytest.mark.parametrize("name", KNOWN_MISTAKES)
def test_a_swapped_checkpoint_is_seen(name: str, stored: Stored, tmp_path: Path) -> None:
    case, change = BY_NAME[KNOWN_MISTAKES[name][0]], KNOWN_MISTAKES[name][1]
    sequence = sequence_of(case, LENGTH)
    official = official_step(case, stored(case), sequence)
    assert official is not None
    same = reference(changed(stored(case), tmp_path / "same", dict))
    assert error(same.run(sequence), official) <= FLOAT32
    wrong = reference(changed(stored(case), tmp_path / "wrong", change))
    assert ANY < error(wrong.run(sequence), official) < float("inf")  # wrong numbers, not NaN


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{n.case}-{n.key}")
def test_a_wrong_number_is_seen(number: Number, stored: Stored, tmp_path: Path) -> None:
    case, folder = BY_NAME[number.case], shutil.copytree(stored(BY_NAME[number.case]), tmp_path / "wrong")
    path = next(p for p in folder.iterdir() if p.name in {"config.yaml", "config.json"})
    path.write_text(json.dumps(yaml.safe_load(path.read_text()) | {number.key: number.value}))  # JSON is YAML too
    sequence = sequence_of(case, LENGTH)
    official = official_step(case, stored(case), sequence, "float64")
    assert official is not None
    assert error(reference(folder).run(sequence), official) > number.least


def test_wrong_formulas_are_seen(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["lm-mixed"]
    sequence = sequence_of(case, LENGTH)
    official = official_step(case, stored(case), sequence, "float64")
    assert official is not None
    with monkeypatch.context() as patch:
        tanh_form = torch.nn.GELU(approximate="tanh")
        patch.setitem(ACTIVATIONS, "gelu", lambda x: tanh_form(torch.from_numpy(x)).numpy())
        assert error(reference(stored(case)).run(sequence), official) > EPS
    with monkeypatch.context() as patch:  # no mean subtracted
        patch.setattr(v1_blocks, "head_norm", lambda h, gain, eps: gain * rms_norm(h, np.ones(1), eps).ravel())
        assert error(reference(stored(case)).run(sequence), official) > ANY
    assert error(reference(stored(case)).run(sequence), official) <= FLOAT64


@pytest.mark.parametrize("name", ["lm-mixed", "lm-no-slstm", "large-plain", "hf-plain"])
def test_states_with_the_scale_on_k_are_seen(name: str, stored: Stored) -> None:
    case = BY_NAME[name]
    sequence, model = sequence_of(case, LENGTH), reference(stored(case))
    model.run(sequence)
    official = official_states(case, stored(case), sequence)
    assert official is not None
    for part in ("C", "n"):
        state = model.state()[f"blocks.0.{part}"]
        assert error(official[f"blocks.0.{part}"], state) <= FLOAT32
        assert error(official[f"blocks.0.{part}"], state / np.sqrt(state.shape[1])) > ANY


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", HALVED)
def test_half_precision_files_load(name: str, dtype: str, stored: Stored) -> None:
    case = BY_NAME[name]
    folder, sequence = stored(case, dtype), sequence_of(case, LENGTH)
    kinds = {tensor.dtype for path in folder.glob("*.safetensors") for tensor in load_file(path).values()}
    kinds |= {tensor.dtype for path in folder.glob("*.pt") for tensor in torch.load(path, weights_only=True).values()}
    assert kinds == {getattr(torch, dtype)}
    outputs = reference(folder).run(sequence)
    assert error(official_step(case, folder, sequence, "float64"), outputs) <= FLOAT64
    assert error(outputs, reference(stored(case)).run(sequence)) > FLOAT64  # the weights really were rounded


def names_in(folder: Path) -> set[str]:
    """Tensor names of all safetensors files."""
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_family_is_found_from_the_names(case: Case, stored: Stored) -> None:
    assert reference(stored(case)).family == case.family


def test_files_are_as_the_families_write_them(stored: Stored) -> None:
    folder = {name: stored(case) for name, case in BY_NAME.items()}
    assert {"model.token_embedding.weight"} == {n for n in names_in(folder["lm-hf-tied"]) if "blocks" not in n} - {
        "model.xlstm_block_stack.post_blocks_norm.weight"
    }
    assert "token_embedding.weight" not in names_in(folder["lm-one-head"])
    assert "lm_head.weight" not in names_in(folder["lm-selu"]) | names_in(folder["hf-tied"])
    assert [p.name for p in sorted(folder["large-three-heads"].glob("*.safetensors"))] == [
        f"model_{index}.safetensors" for index in range(3)
    ]
    assert len(list(folder["hf-one-head"].glob("model-*-of-*.safetensors"))) > 1
    assert (folder["hf-one-head"] / "model.safetensors.index.json").exists()
    config = json.loads((folder["hf-old-names"] / "config.json").read_text())
    assert not {"hidden_size", "num_hidden_layers"} & config.keys()
    kernels = {name: load_file(folder[name] / "model.safetensors") for name in ("lm-three-heads", "lm-all-slstm")}
    shapes = {name: next(t for k, t in kernels[name].items() if "_kernel_" in k).shape for name in kernels}
    assert shapes == {"lm-three-heads": (3, 12, 48), "lm-all-slstm": (6, 32, 8)}


def test_transformers_does_not_follow_the_old_names(stored: Stored) -> None:
    """Why the official runner passes the config of c-old-names itself."""
    from transformers import xLSTMConfig

    assert xLSTMConfig.from_pretrained(stored(BY_NAME["hf-old-names"])).hidden_size == 4096


def test_a_state_dict_file_is_a_checkpoint_too(stored: Stored) -> None:
    case = BY_NAME["lm-five-heads"]
    sequence = sequence_of(case, 5)
    file = stored(case) / "model.pt"
    np.testing.assert_array_equal(reference(file).run(sequence), reference(stored(case)).run(sequence))


def test_a_tensor_nobody_reads_is_an_error(stored: Stored, tmp_path: Path) -> None:
    folder = changed(stored(BY_NAME["large-plain"]), tmp_path / "more", lambda t: t | {"rope.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"rope\.weight"):
        reference(folder)


@pytest.mark.parametrize("name", ["lm-mixed", "stack-slstm", "large-plain"])
def test_reset_forgets_and_state_is_a_copy(name: str, stored: Stored) -> None:
    case = BY_NAME[name]
    sequence, model = sequence_of(case, 8), Reference(stored(case))
    fresh, first = model.state(), model.run(sequence)
    taken = model.state()
    kept = {key: array.copy() for key, array in taken.items()}
    for key, array in fresh.items():
        is_slstm_m = key.endswith(".m") and f"{key[:-1]}y" in fresh
        assert np.all(array == (-1e30 if is_slstm_m else 0.0))
    model.run(sequence)
    assert all(np.array_equal(taken[key], kept[key]) for key in kept)
    model.reset()
    np.testing.assert_array_equal(model.run(sequence), first)


def test_the_first_slstm_step_survives_a_closed_input_gate() -> None:
    """raw_i = -200: y = sigmoid(o) tanh(z), whatever i is."""
    cell = SLSTMCell(np.zeros((1, 4, 2, 2)), np.zeros((1, 4, 2)))
    y = cell.step(np.array([-200.0, 3.0, 0.5, 1.0]).reshape(4, 1, 1) * np.ones((4, 1, 2)))
    np.testing.assert_allclose(y, sigmoid(np.array(1.0)) * np.tanh(0.5))
    assert np.all(cell.m == -200.0) and np.all(cell.n == 1.0)


def test_a_seed_is_a_checkpoint(tmp_path: Path) -> None:
    case, seeds = BY_NAME["large-plain"], (5, 5, 6)
    folders = [make_checkpoint(case, tmp_path / str(i), seed=seed) for i, seed in enumerate(seeds)]
    files = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1] != files[2]
