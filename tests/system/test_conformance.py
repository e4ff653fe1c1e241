"""The Python runtime on the conformance files; `test_c_conformance.py` runs the same in C."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.exact_math import SplitMix64, weights
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.snapshot import read_snapshot
from xlstm_edge_runtime.text import StopMatcher
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

from ..conformance import FOLDER, read_index
from ..conformance.edits import edit_file, edited_snapshot, edited_text
from ..conformance.pieces import options_of

Case = dict[str, Any]
CHECKS = read_index()
BUNDLES = [case["bundle"] for case in CHECKS["bundles"]]
ERRORS = {
    "bundle": xr.BundleError,
    "state": xr.StateError,
    "input": xr.InputError,
    "verification": xr.VerificationError,
}
LARGEST = 1_500_000  # bytes of the folder: it is part of every clone


def verdict(call: Callable[[], object]) -> str | None:
    """The class of error, by the name that the files use; None for none."""
    try:
        call()
    except xr.XlstmEdgeError as error:
        return next(name for name, kind in ERRORS.items() if isinstance(error, kind))
    return None


def difference(got: Any, expected: Any, measure: str) -> float:
    """As the README of the files defines the measures."""
    difference = np.asarray(got, np.float64) - expected
    if measure == "range":
        return float(np.abs(difference).max() / np.ptp(expected))
    assert measure == "root mean square"
    return float(np.sqrt(np.square(difference).mean() / np.square(np.asarray(expected, np.float64)).mean()))


def near(got: Any, case: Case, row: int) -> None:
    expected = load_file(FOLDER / case["file"])["logits"][row]
    assert difference(got, expected, case["measure"]) <= case["tolerance"], (case["bundle"], row)


@cache
def loaded(bundle: str) -> xr.Model:
    return xr.load(FOLDER / "bundles" / bundle, threads=1)


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """Options as keywords: seeds and keys of biases are text in JSON."""
    given = {**options, "seed": int(options["seed"])}
    if "logit_bias" in given:
        given["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
    return given


def test_the_folder_is_small_and_all_of_it_is_used() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    named = {case[key] for kind in CHECKS.values() for case in kind for key in ("file", "snapshot") if case.get(key)}
    rest = {str(path.relative_to(FOLDER)) for path in files if path.relative_to(FOLDER).parts[0] != "bundles"}
    assert rest - {"README.md", "conformance.json", ".gitattributes"} == named - {
        case["file"] for case in CHECKS["files"]
    }
    page = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"`{kind}`" in page for kind in CHECKS)
    assert all(
        f"`{key}`" in page for kind, cases in CHECKS.items() for case in cases for key in case if kind != "bundles"
    )


@pytest.mark.parametrize("case", CHECKS["logits"], ids=lambda case: case["bundle"])
def test_logits(case: Case) -> None:
    session = loaded(case["bundle"]).session()
    for row, call in enumerate(case["calls"]):
        near(session.prefill(call), case, row)
    assert session.tokens == sum(map(len, case["calls"]))


@pytest.mark.parametrize("case", CHECKS["vectors"], ids=lambda case: case["bundle"])
def test_vectors(case: Case) -> None:
    session, inputs, done = loaded(case["bundle"]).session(), load_file(FOLDER / case["file"])["inputs"], 0
    for row, length in enumerate(case["lengths"]):
        near(session.prefill(inputs[done : done + length]), case, row)
        done += length
    assert session.tokens == len(inputs) == done


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_prove_themselves(name: str) -> None:
    from xlstm_edge_runtime.verify import verify_bundle

    assert len(list(verify_bundle(FOLDER / "bundles" / name))) >= 4  # each that fails raises


@pytest.mark.parametrize("case", CHECKS["generations"], ids=lambda case: f"{case['bundle']}-{case['options']}")
def test_generations(case: Case) -> None:
    *tokens, finish = loaded(case["bundle"]).session().generate(case["prompt"], **asked(case["options"]))
    assert [event.id for event in tokens if isinstance(event, xr.Token)] == case["ids"]
    assert isinstance(finish, xr.Finish) and finish.reason == case["reason"]


@pytest.mark.parametrize("case", CHECKS["texts"], ids=lambda case: f"{case['bundle']}-{case['stop']}")
def test_texts(case: Case) -> None:
    model = loaded(case["bundle"])
    assert model.encode(case["prompt"]) == case["prompt_ids"]
    *pieces, finish = xr.stream_text(model.session(), case["prompt"], stop=case["stop"], **asked(case["options"]))
    assert "".join(piece.text for piece in pieces if isinstance(piece, xr.Piece)) == case["text"]
    assert isinstance(finish, xr.Finish) and finish.reason == case["reason"]


@pytest.mark.parametrize("case", CHECKS["snapshots"], ids=lambda case: f"{case['snapshot']}-{case['bundle']}")
def test_snapshots(case: Case, tmp_path: Path) -> None:
    session, live = loaded(case["bundle"]).session(), loaded(case["bundle"]).session()
    session.load(FOLDER / case["snapshot"])
    assert session.tokens == case["tokens"] == len(case["before"])
    if case["again"]:
        session.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (FOLDER / case["snapshot"]).read_bytes()
    live.prefill(case["before"])
    for row, call in enumerate(case["calls"]):
        near(session.prefill(call), case, row)
        logits = live.prefill(call)
        if case["uninterrupted"]:
            near(logits, case, row)


@pytest.mark.parametrize("case", CHECKS["exact"], ids=lambda case: f"{case['kind']}-{case.get('seed')}")
def test_exact_arithmetic(case: Case) -> None:
    if case["kind"] == "weight":
        got = [str(weights(np.array([float.fromhex(x)]))[0]) for x in case["x"]]
        assert got == case["weight"]
        return
    random, again = SplitMix64(int(case["seed"])), SplitMix64(int(case["seed"]))
    assert [str(random.next()) for _ in case["next"]] == case["next"]
    assert [str(again.below(int(n))) for n in case["limits"]] == case["below"]


def test_sampling() -> None:
    for case in CHECKS["sampling"]:
        rows = load_file(FOLDER / case["file"])[case["tensor"]] if "tensor" in case else np.zeros((1, 50), np.float32)

        def draw(case: Case = case, rows: Any = rows) -> None:
            sampler = xr.Sampler(options_of(case), case["vocab"], prompt=case["prompt"])
            ids = [sampler(row) for row in rows]
            assert ids == case["ids"], case

        assert verdict(draw) == case["error"], case


@cache
def tokenizer_of(kind: str, file: str | None) -> Tokenizer:
    if file is None:
        assert kind == "byte"
        return ByteTokenizer()
    return HuggingFaceTokenizer(json.loads((FOLDER / file).read_text("utf-8")))


def test_decode() -> None:
    for case in CHECKS["decode"]:
        stream = tokenizer_of(case["kind"], case["file"]).stream(case["prompt"])
        assert [stream.push(token) for token in case["ids"]] == case["pieces"], case
        assert stream.flush() == case["rest"], case


def test_stops() -> None:
    for case in CHECKS["stops"]:
        matcher = StopMatcher(case["stop"])
        assert [matcher.push(text, visible=visible) for text, visible in case["pieces"]] == case["shown"], case
        assert (matcher.flush(), matcher.hit) == (case["rest"], case["hit"]), case


def changed_bundles(folder: Path, kind: str) -> Iterator[tuple[Case, Path]]:
    """Each case with its bundle spoiled, in one folder after another."""
    for number, case in enumerate(CHECKS[kind]):
        bundle = folder / case["bundle"]
        if not number or not bundle.exists() or kind == "files":
            shutil.rmtree(bundle, ignore_errors=True)
            shutil.copytree(FOLDER / "bundles" / case["bundle"], bundle)
        if kind == "files":
            edit_file(bundle, case)
        else:
            text = (FOLDER / "bundles" / case["bundle"] / "manifest.json").read_text("utf-8")
            (bundle / "manifest.json").write_bytes(edited_text(text, case))
        yield case, bundle


@pytest.mark.parametrize("kind", ["manifests", "files"])
def test_changed_bundles(kind: str, tmp_path: Path) -> None:
    for case, bundle in changed_bundles(tmp_path, kind):
        assert verdict(lambda: xr.load(bundle, threads=1)) == case["error"], case  # noqa: B023  # called at once


def test_manifests_alone() -> None:
    """What the text alone shows is seen before any other file is looked at."""
    for case in CHECKS["manifests"]:
        text = edited_text((FOLDER / "bundles" / case["bundle"] / "manifest.json").read_text("utf-8"), case)
        try:
            got = verdict(lambda: Manifest.from_json(text.decode("utf-8")))  # noqa: B023  # called at once
        except UnicodeDecodeError:
            got = "bundle"
        assert got == ("bundle" if case["alone"] else None), case


def changed_snapshots(path: Path) -> Iterator[Case]:
    for case in CHECKS["snapshot_edits"]:
        path.write_bytes(edited_snapshot((FOLDER / case["snapshot"]).read_bytes(), case))
        yield case


def test_changed_snapshots(tmp_path: Path) -> None:
    for case in changed_snapshots(tmp_path / "state"):
        manifest = loaded(case["bundle"]).manifest
        read = lambda: read_snapshot(tmp_path / "state", manifest.state, source=manifest.source)  # noqa: B023, E731
        assert verdict(read) == case["error"], case
