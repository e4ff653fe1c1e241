"""How much a bundle may be off, whatever it states of itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import vectors

from ..changed_bundles import edit_json, on, rehash
from ..command import Command, assert_one_sentence
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


STATED: dict[str, Callable[[dict[str, Any]], object]] = {
    "any float difference": lambda v: [c.update(float_error=1e9) for c in v["checks"]],
    "any rounding": lambda v: [c.update(rounding_error=1e9) for c in v["checks"]],
    "rounding of float32 weights": lambda v: [c.update(rounding_error=1.0) for c in v["checks"]],
    "an endless range": lambda v: [c.update(range=1e40) for c in v["checks"]],
    "no checks": lambda v: v.update(checks=[]),
    "one check": lambda v: v.update(checks=v["checks"][:1]),
    "twelve tokens": lambda v: v.update(length=12, checks=[c for c in v["checks"] if c["position"] < 12]),
    "another key": lambda v: v.update(tolerance=1e9),
    "no sums": lambda v: [c.update(sums=[]) for c in v["checks"]],
    "no values": lambda v: [c.update(ids=[], values=[]) for c in v["checks"]],
    "an id beyond the vocabulary": lambda v: v["checks"][0]["ids"].__setitem__(0, 97),
    "a value of text": lambda v: v["checks"][0]["values"].__setitem__(0, "1"),
    "half a token": lambda v: v.update(length=137.0),
    "a negative seed": lambda v: v.update(seed=-1),
}


@pytest.mark.parametrize("name", STATED)
def test_vectors_that_allow_too_much_are_refused(name: str, bundle: Path, command: Command) -> None:
    edit_json(bundle / "vectors.json", STATED[name])
    rehash(bundle)
    assert_one_sentence(command("verify", bundle), 1)


def test_what_a_bundle_states_is_clipped(bundle: Path, command: Command) -> None:
    """The largest error that may be stated still allows a hundredth of the range at most."""
    edit_json(bundle / "vectors.json", lambda v: [c.update(float_error=1.0) for c in v["checks"]])
    on("mixer.gates.bias", np.zeros_like)(bundle)
    assert_one_sentence(command("verify", bundle), 1)
    read = vectors.read_vectors(bundle, xr.load(bundle).manifest)
    assert {e.allowed_float for e in read.expected} == {vectors.MOST_FLOAT}


def test_test_inputs_follow_from_their_rule() -> None:
    """splitmix64's published first outputs after seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert vectors.make_inputs(1234567, 5, vocab_size=2**31 - 1, width=1).tolist() == [n % (2**31 - 1) for n in known]
    assert vectors.make_inputs(1234567, 1, vocab_size=None, width=5)[0].tolist() == [(n >> 55) / 128 - 2 for n in known]


def test_every_output_counts(bundle: Path) -> None:
    read = vectors.read_vectors(bundle, xr.load(bundle).manifest)
    model = xr.load(bundle, threads=1)
    output = np.array(model.session().prefill(read.inputs[:1]), np.float64)
    assert read.expected[0].float_difference(output) < vectors.LEAST_FLOAT
    for index in range(len(output)):
        changed = output.copy()
        changed[index] += 1e-3 * read.expected[0].span
        assert read.expected[0].float_difference(changed) > vectors.LEAST_FLOAT
