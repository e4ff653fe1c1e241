"""Cases of what a runtime computes: logits, ids, text, snapshots. What float32 could decide either way is left out."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize.read import read_weights
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_runtime.options import GenerationOptions
from xlstm_edge_runtime.sampling import Sampler
from xlstm_edge_runtime.vectors import read_vectors

from ..oracles.reference import Reference
from .bundles import BUNDLES, CHECKPOINTS

Case = dict[str, Any]
Logits = NDArray[np.float32]
# As in tests/system/test_parity.py: official float32 and exported graphs stay below it on every family and odd shape.
FLOAT32 = 1e-4
# float16 holds 11 bits of a number, 5e-4 of the largest of a head: less of that reaches the logits.
FLOAT16 = 1e-3
# Lengths of calls one after another, for a chunk of 8 and of 4: below it, over it, exactly it, several, single tokens.
CALLS = (1, 3, 8, 1, 9, 4, 20, 2)
TRIALS = 40


def ids_of(model: xr.Model, lengths: Iterable[int], salt: int = 7) -> list[list[int]]:
    """Calls of these lengths, of ids all over the vocabulary."""
    rng = np.random.default_rng(salt)
    return [[int(i) for i in rng.integers(0, model.output_width, length)] for length in lengths]


def logits_cases(folder: Path, checkpoints: dict[str, Path], bundles: dict[str, Path]) -> list[Case]:
    """After each call, what the float64 reference says of the same ids; of integers, of the weights as they are stored."""
    cases = []
    (folder / "logits").mkdir()
    for name, bundle in bundles.items():
        model, source = xr.load(bundle, threads=1), checkpoints[BUNDLES[name][0]]
        if not model.takes_ids:
            continue
        calls = ids_of(model, CALLS)
        flat, ends = np.concatenate(calls), np.cumsum([len(call) for call in calls]) - 1
        if model.manifest.quantization:
            expected = run_reference(open_checkpoint(source).spec, read_weights(bundle / "model.onnx"), flat).outputs
            measure = {"measure": "root mean square", "tolerance": _rounding(model)}
        else:
            expected, measure = Reference(source).run(flat), {"measure": "range", "tolerance": FLOAT32}
        file = f"logits/{name}.safetensors"
        save_file({"logits": expected[ends].astype(np.float32)}, folder / file)
        cases.append({"bundle": name, "calls": calls, "file": file, **measure})
    return cases


def vector_cases(folder: Path, checkpoints: dict[str, Path]) -> list[Case]:
    """The same of a stack of float vectors, whose inputs are stored too."""
    name, file, rng = "vectors", "vectors.safetensors", np.random.default_rng(5)
    source = Reference(checkpoints[BUNDLES[name][0]])
    width = CHECKPOINTS[BUNDLES[name][0]].config["embedding_dim"]
    inputs = rng.standard_normal((sum(CALLS), width)).astype(np.float32)
    outputs = source.run(inputs)[np.cumsum(CALLS) - 1].astype(np.float32)
    save_file({"inputs": inputs, "logits": outputs}, folder / file)
    return [{"bundle": name, "lengths": list(CALLS), "file": file, "measure": "range", "tolerance": FLOAT32}]


def _rounding(model: xr.Model) -> float:
    """How far kernels may round from the reference, as the bundle's own vectors state it."""
    allowed = [check.allowed_rounding for check in read_vectors(model.folder, model.manifest).expected]
    return float(f"{max(share for share in allowed if share is not None):.3g}")


def generate(model: xr.Model, prompt: Sequence[int], options: dict[str, Any]) -> tuple[list[int], str, bool]:
    """Ids, why they ended, and whether no logits within the tolerance would have given others."""
    resolved = model.resolve(GenerationOptions(**options))
    session, late = model.session(), resolved.stop_ids if resolved.min_tokens else ()
    sampler = Sampler(resolved.sampling, model.output_width, prompt=prompt, late=late)
    logits, ids, certain, rng = session.prefill(list(prompt)), list[int](), True, np.random.default_rng(0)
    while len(ids) < resolved.max_tokens:
        hold = len(ids) < resolved.min_tokens
        noise = rng.uniform(-FLOAT32, FLOAT32, (TRIALS, len(logits))).astype(np.float32) * np.ptp(logits)
        others = {copy.deepcopy(sampler)(logits + one, hold_late=hold) for one in noise}
        token = sampler(logits, hold_late=hold)
        certain = certain and others == {token}
        if token in resolved.stop_ids:
            return ids, "eos", certain
        ids.append(token)
        logits = session.step(token)
    return ids, "length", certain


OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 24, "temperature": 0.0},
    {"max_tokens": 16, "temperature": 0.0, "repetition_penalty": 1.3, "penalty_window": 20},
    {"max_tokens": 16, "temperature": 0.0, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"max_tokens": 24, "temperature": 1.0},
    {"max_tokens": 24, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"max_tokens": 12, "temperature": 1.4, "top_p": 0.6, "repetition_penalty": 1.1, "logit_bias": {"5": 2.0}, "banned": [7, 9]},
    {"max_tokens": 0, "temperature": 1.0},
]  # fmt: skip
SPECIAL_OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 24},
    {"max_tokens": 24, "temperature": 1.2, "top_k": 0, "ignore_eos": True},
    {"max_tokens": 24, "temperature": 1.5, "top_k": 0, "min_tokens": 5, "stop_ids": list(range(4, 120))},
]


def generation_cases(bundles: dict[str, Path]) -> list[Case]:
    """Greedy and sampled ids of the float32 bundles for CPUs; the first seeds that no rounding decides."""
    cases = []
    for name in ("capped", "stabilized", "mixed"):
        model = xr.load(bundles[name], threads=1)
        prompts = ids_of(model, (1, 7, 8, 19), salt=11)
        for number, options in enumerate([*OPTIONS, *(SPECIAL_OPTIONS if name == "mixed" else [])]):
            prompt = prompts[number % len(prompts)]
            for seed in range(number + 1, 500):
                asked = {**options, "seed": seed}
                if "logit_bias" in options:
                    asked["logit_bias"] = {int(i): bias for i, bias in options["logit_bias"].items()}
                ids, reason, certain = generate(model, prompt, asked)
                if certain:
                    break
                prompt = [*prompt[1:], (prompt[0] + seed) % model.output_width]  # greedy has no other seed
            else:
                raise AssertionError(f"no seed for {name}, {options}")
            cases.append(
                {
                    "bundle": name,
                    "prompt": prompt,
                    "options": {**options, "seed": str(seed)},
                    "ids": ids,
                    "reason": reason,
                }
            )
    return cases  # fmt: skip


def said(model: xr.Model, prompt: str, **options: Any) -> tuple[str, str]:
    """The text, and why it ended."""
    events = list(xr.stream_text(model.session(), prompt, **options))
    finish = events[-1]
    assert isinstance(finish, xr.Finish)
    return "".join(event.text for event in events if isinstance(event, xr.Piece)), finish.reason


def text_cases(bundles: dict[str, Path]) -> list[Case]:
    """Prompts as text, continued; stop strings out of what comes, so that they cut it."""
    cases = []
    for name, prompt in (("capped", "é!"), ("mixed", "the cat")):
        model = xr.load(bundles[name], threads=1)
        ids = model.encode(prompt)
        for seed in range(1, 500):
            options: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "top_k": 0, "seed": seed}
            text, reason = said(model, prompt, **options)
            if generate(model, ids, options)[2] and len(text) > 12:
                break
        stops = [[], [text[5:8]], [text[9:11], text[4:6] + "\0never"], [text[3:9], text[4:6]]]
        for stop in stops:
            cut, why = said(model, prompt, stop=stop, **options)
            begins = [text.find(word) for word in stop if word in text]
            assert (cut, why) == ((text[: min(begins)], "stop") if begins else (text, reason))
            case = {"bundle": name, "prompt": prompt, "prompt_ids": ids, "options": {**options, "seed": str(seed)}}
            cases.append(case | {"stop": stop, "text": cut, "reason": why})
    return cases


def snapshot_cases(folder: Path, checkpoints: dict[str, Path], bundles: dict[str, Path]) -> list[Case]:
    """Snapshots of 13 tokens, and the logits after more ids in each bundle of the same checkpoint."""
    cases = []
    (folder / "snapshots").mkdir()
    for writer, readers in (
        ("capped", ("capped", "static", "integers")),
        ("static", ("static", "capped")),
        ("mixed", ("mixed", "web")),
        ("stabilized", ("stabilized",)),
    ):
        model, source = xr.load(bundles[writer], threads=1), checkpoints[BUNDLES[writer][0]]
        before, more = ids_of(model, (13,), salt=3)[0], ids_of(model, (1, 10), salt=4)
        for dtype in ("float32", "float16"):
            session, file = model.session(), f"snapshots/{writer}-{dtype}.safetensors"
            session.prefill(before)
            session.save(folder / file, dtype=dtype)
            for reader in readers:
                name = f"snapshots/{writer}-{dtype}-in-{reader}-logits.safetensors"
                expected = _continued(bundles[reader], folder / file, source, before, more)
                save_file({"logits": expected.astype(np.float32)}, folder / name)
                case = {"bundle": reader, "snapshot": file, "before": before, "tokens": len(before), "calls": more}
                cases.append(case | {"file": name} | _near(bundles[reader], writer == reader, dtype))
    return cases


def _continued(bundle: Path, snapshot: Path, source: Path, before: list[int], more: list[list[int]]) -> NDArray[Any]:
    """Of the float64 reference, which knows no snapshots; of integers, which have none of such a state, of Python."""
    model = xr.load(bundle, threads=1)
    if not model.manifest.quantization:
        flat, ends = sum(more, before), len(before) - 1 + np.cumsum([len(call) for call in more])
        return Reference(source).run(flat)[ends]
    session = model.session()
    session.load(snapshot)
    return np.stack([session.prefill(call) for call in more])


def _near(reader: Path, is_own: bool, dtype: str) -> Case:
    """The same state in float32 goes on as the state that it was; saved again, it is the same file byte by byte.

    Integers are compared with another machine's: either may be as far from the truth as the bundle allows.
    """
    model = xr.load(reader, threads=1)
    if model.manifest.quantization:
        tolerance = 2 * _rounding(model)
        return {"measure": "root mean square", "tolerance": tolerance, "again": False, "uninterrupted": False}
    same = is_own and dtype == "float32"
    return {
        "measure": "range",
        "tolerance": FLOAT32 if dtype == "float32" else FLOAT16,
        "again": same,
        "uninterrupted": True,
    }
