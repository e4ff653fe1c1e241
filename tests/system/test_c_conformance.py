"""The runtime in C on the conformance files, watched by sanitizers; what it has not is counted, not passed over."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ..conformance import FOLDER
from ..conformance.edits import edited_text
from .test_c_runtime import CODES, Driver, ids_text, programs, pytestmark, sampler_words, sanitized
from .test_conformance import BUNDLES, CHECKS, ERRORS, Case, changed_bundles, changed_snapshots, loaded, near, verdict

__all__ = ["programs", "pytestmark", "sanitized"]  # fixtures, and where there is no compiler
NAMES = {code: name for code, kind in CODES.items() for name, error in ERRORS.items() if error is kind} | {0: None}
ABSENT = {"min_tokens", "stop_ids", "ignore_eos"}  # options of a generation that C leaves to its caller


def load(driver: Driver, bundle: str) -> None:
    driver.ok("load", FOLDER / "bundles" / bundle)


@pytest.mark.parametrize("case", CHECKS["logits"], ids=lambda case: case["bundle"])
def test_logits(case: Case, sanitized: Driver) -> None:
    load(sanitized, case["bundle"])
    for row, call in enumerate(case["calls"]):
        sanitized.ok("prefill", *ids_text(call))
        near(sanitized.logits(), case, row)
    assert int(sanitized.ok("tokens")) == sum(map(len, case["calls"]))


def options_words(case: Case, defaults: str, vocab: int) -> str:
    """The bundle's defaults, then what is asked for; the driver takes the last of a name."""
    options = {name: value for name, value in case["options"].items() if name != "max_tokens"}
    words = sampler_words(vocab, options, case["prompt"]).split(" ")
    return " ".join([*words[:2], *defaults.split(), *words[2:]])


@pytest.mark.parametrize("name", ["capped", "stabilized", "mixed"])
def test_generations(name: str, sanitized: Driver) -> None:
    cases = [case for case in CHECKS["generations"] if case["bundle"] == name]
    run = [case for case in cases if not case["options"].keys() & ABSENT]
    assert len(run) == len(cases) - (2 if name == "mixed" else 0)
    for case in run:
        load(sanitized, name)
        sanitized.ok("prefill", *ids_text(case["prompt"]))
        vocab = len(sanitized.logits())
        sanitized.ok("sampler", options_words(case, sanitized.ok("defaults"), vocab))
        got = sanitized.ok("generate", case["options"].get("max_tokens", 256)).split()
        assert got == [*map(str, case["ids"]), case["reason"]], case


@pytest.mark.parametrize("case", CHECKS["snapshots"], ids=lambda case: f"{case['snapshot']}-{case['bundle']}")
def test_snapshots(case: Case, sanitized: Driver, tmp_path: Path) -> None:
    load(sanitized, case["bundle"])
    sanitized.ok("restore", FOLDER / case["snapshot"])
    assert int(sanitized.ok("tokens")) == case["tokens"]
    sanitized.ok("save", tmp_path / "again")
    if case["again"]:
        assert (tmp_path / "again").read_bytes() == (FOLDER / case["snapshot"]).read_bytes()
    for row, call in enumerate(case["calls"]):
        sanitized.ok("prefill", *ids_text(call))
        near(sanitized.logits(), case, row)


def test_exact_arithmetic(sanitized: Driver) -> None:
    for case in CHECKS["exact"]:
        if case["kind"] == "weight":
            assert sanitized.ok("weights", " ".join(case["x"])).split() == case["weight"]
            continue
        assert sanitized.ok("random", " ".join([case["seed"], *["0"] * len(case["next"])])).split() == case["next"]
        assert sanitized.ok("random", " ".join([case["seed"], *case["limits"]])).split() == case["below"]


def test_sampling(sanitized: Driver, tmp_path: Path) -> None:
    for case in CHECKS["sampling"]:
        options = {**case["options"], "seed": case["seed"]}
        code = sanitized.refused("sampler", sampler_words(case["vocab"], options, case["prompt"]))
        if "tensor" not in case:
            assert NAMES[code] == case["error"], case
            continue
        assert not code
        (tmp_path / "logits").write_bytes(load_file(FOLDER / case["file"])[case["tensor"]].tobytes())
        got = [int(word) for word in sanitized.ok("sample_file", tmp_path / "logits").split()]
        if case["error"] is None:
            assert got == case["ids"], case
        else:
            assert [NAMES[-code] for code in got] == [case["error"]], case


def stream(driver: Driver, ids: list[int]) -> bytes:
    return bytes.fromhex(driver.ok("decode", *ids_text(ids))) if ids else b""


def test_decode(sanitized: Driver) -> None:
    """Bytes of ids, for the two kinds of tokenizers that C reads; ids beyond the model's do not come from a model."""
    run = 0
    for bundle, file in (("capped", None), ("mixed", "tokenizers/byte-level.json")):
        load(sanitized, bundle)
        size = len(load_file(FOLDER / f"logits/{bundle}.safetensors")["logits"][0])
        if file is not None:
            copy = FOLDER / "bundles" / bundle / "tokenizer.json"
            assert copy.read_bytes() == (FOLDER / file).read_bytes()
        for case in (case for case in CHECKS["decode"] if case["file"] == file):
            before = stream(sanitized, case["prompt"]).decode("utf-8", "replace")
            inside = [token for token in case["ids"] if token < size]
            after = stream(sanitized, [*case["prompt"], *inside]).decode("utf-8", "replace")
            assert after == before + "".join(case["pieces"]) + case["rest"], case
            run += 1
    assert run == 72


@pytest.mark.parametrize("kind", ["manifests", "files"])
def test_changed_bundles(kind: str, sanitized: Driver, tmp_path: Path) -> None:
    for case, bundle in changed_bundles(tmp_path, kind):
        assert NAMES[sanitized.refused("load", bundle)] == case["error"], case


def test_manifests_alone(sanitized: Driver, tmp_path: Path) -> None:
    for case in CHECKS["manifests"]:
        text = (FOLDER / "bundles" / case["bundle"] / "manifest.json").read_text("utf-8")
        (tmp_path / "manifest.json").write_bytes(edited_text(text, case))
        got = NAMES[sanitized.refused("manifest", tmp_path / "manifest.json")]
        assert got == ("bundle" if case["alone"] else None), case


def test_changed_snapshots(sanitized: Driver, tmp_path: Path) -> None:
    load(sanitized, "capped")
    for case in changed_snapshots(tmp_path / "state"):
        assert case["bundle"] == "capped"
        assert NAMES[sanitized.refused("restore", tmp_path / "state")] == case["error"], case


# The C library's expf and logf may end in another bit than NumPy's; an exponent of 88 makes 8e-6 of the number of that.
OTHER_FORM = 2e-5
SIZES = (1e-40, 1e-38, 1e-20, 1e-3, 1.0, 10.0, 100.0, 1e5, 1e20, 1e37, 2e38)


def random_state(rng: np.random.Generator, tensors: dict[str, Any]) -> dict[str, Any]:
    """Numbers of any size in some of the tensors, and now and then one that is none."""
    made = {}
    for name, array in tensors.items():
        with np.errstate(all="ignore"):  # beyond float16, as scales may bring it back
            numbers = (rng.standard_normal(array.shape) * rng.choice(SIZES)).astype(array.dtype)
        made[name] = numbers if rng.random() < 0.7 else array.copy()
        if rng.random() < 0.03:
            made[name].flat[0] = rng.choice([np.nan, np.inf, -np.inf, 0])
    return made


@pytest.mark.parametrize(
    ("writer", "reader"),
    [("capped", "static"), ("static", "capped"), ("static", "static"), ("mixed", "web"), ("stabilized", "stabilized")],
)
def test_random_states_are_judged_and_converted_as_in_python(
    writer: str, reader: str, sanitized: Driver, tmp_path: Path
) -> None:
    session, taken = loaded(reader).session(), 0
    load(sanitized, reader)
    for number in range(100):
        stored = FOLDER / f"snapshots/{writer}-{('float32', 'float16')[number % 2]}.safetensors"
        with safe_open(stored, "np") as file:
            metadata = file.metadata()
        save_file(random_state(np.random.default_rng(number), load_file(stored)), tmp_path / "state", metadata)
        expected = verdict(lambda: session.load(tmp_path / "state"))
        assert NAMES[sanitized.refused("restore", tmp_path / "state")] == expected, number
        if expected is not None:
            continue
        taken += 1
        session.save(tmp_path / "python")
        sanitized.ok("save", tmp_path / "c")
        if {writer, reader} != {"capped", "static"}:
            assert (tmp_path / "python").read_bytes() == (tmp_path / "c").read_bytes(), number
        ours, theirs = load_file(tmp_path / "python"), load_file(tmp_path / "c")
        for name, array in ours.items():
            np.testing.assert_allclose(theirs[name], array, rtol=OTHER_FORM, atol=1e-37, err_msg=f"{number} {name}")
    assert 40 <= taken <= 90


def test_a_graph_beside_one_for_prompts_reads_any_prompt_token_by_token(sanitized: Driver) -> None:
    """The same bits as single steps, whatever the length: the second graph is not used."""
    load(sanitized, "static")
    ids: Any = np.arange(11) * 23 % 260
    sanitized.ok("prefill", *ids_text(ids))
    together = sanitized.logits()
    load(sanitized, "static")
    for token in ids:
        sanitized.ok("prefill", str(token))
    np.testing.assert_array_equal(sanitized.logits(), together)


def test_a_broken_graph_for_prompts_is_not_opened(sanitized: Driver, tmp_path: Path) -> None:
    """But its bytes are hashed with the others."""
    bundle = Path(shutil.copytree(FOLDER / "bundles" / "static", tmp_path / "bundle"))
    (bundle / "prompt.onnx").write_bytes((bundle / "prompt.onnx").read_bytes()[:-1] + b"?")
    assert NAMES[sanitized.refused("load", bundle)] == "bundle"


def test_every_bundle_loads_but_the_stack_of_vectors(sanitized: Driver) -> None:
    """Which C leaves to Python, and says so."""
    for name in BUNDLES:
        if name in {case["bundle"] for case in CHECKS["vectors"]}:
            code, sentence = sanitized("load", FOLDER / "bundles" / name)
            assert (code, "use the Python runtime" in sentence) == (2, True)
        else:
            load(sanitized, name)
