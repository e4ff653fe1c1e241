"""OpenVINO's form of a bundle beside the bundle for CPUs on onnxruntime: difference, time of a step, what integers cost.

    python tests/benchmarks/openvino_ir.py DIR                                     # the shipped model
    python tests/benchmarks/openvino_ir.py DIR --checkpoint CKPT --text heldout.txt
    python tests/benchmarks/openvino_ir.py DIR --checkpoint CKPT --only parity     # of any model, without a text
    python tests/benchmarks/openvino_ir.py DIR --only time --threads 1

Needs `pip install 'xlstm-edge[openvino-ir]'`. Bundles are made in DIR unless they are there. Machines are noisy: what counts
is the ratio of rounds that alternate in one process, and medians of single steps. KL is that of `xlstm-edge eval`.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xlstm_edge
from xlstm_edge.evaluate import log_softmax, read_ids
from xlstm_edge_exporters.targets.openvino_ir import IR, Bits, import_openvino, write_ir
from xlstm_edge_runtime import Model, load
from xlstm_edge_runtime.manifest import read_manifest

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"
KINDS: tuple[Bits | None, ...] = (None, "int8", "int4")
PARITY_TOKENS, TIMED_TOKENS, WARM = 200, 40, 10
Logits = NDArray[np.float32]


class Stateful:
    """An IR on OpenVINO's CPU plug-in, computing in float32; steps as a session does."""

    def __init__(self, file: Path, threads: int | None = None, **options: Any) -> None:
        openvino = import_openvino()
        chosen = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0, **options}
        self.compiled = openvino.Core().compile_model(file, "CPU", chosen)
        self._request = self.compiled.create_infer_request()
        self._input = openvino.Tensor(self.compiled.input(0).element_type, self.compiled.input(0).shape)
        self._request.set_input_tensor(self._input)
        self._output = self._request.get_output_tensor()

    def step(self, value: Any) -> Logits:
        """Logits (V,) after a token, or the output (D,) after a vector; valid until the next step."""
        self._input.data[:] = value
        self._request.infer()
        output: Logits = self._output.data.reshape(-1)
        return output

    def variables(self) -> list[Any]:
        """The states, each with a `name` and a `state` that is read and set."""
        return list(self._request.query_state())

    def reset(self) -> None:
        """Back to the start."""
        self._request.reset_state()


def prepare(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Name -> the bundles for CPUs, `cpu-KIND`, the bundle `openvino`, and the IRs made of it, `ir-KIND`."""
    made = {f"cpu-{kind or 'float32'}": folder / f"cpu-{kind or 'float32'}" for kind in KINDS}
    made["openvino"] = folder / "openvino"
    for name, out in made.items():
        target, _, kind = name.partition("-")
        if not out.exists():
            xlstm_edge.export(checkpoint, out, target=target, quantize=kind if kind.startswith("int") else None)
    bundle, table = made["openvino"], read_manifest(made["openvino"]).state
    for kind in KINDS:
        out = folder / f"ir-{kind or 'float32'}"
        out.mkdir(exist_ok=True)
        write_ir(bundle / "model.onnx", out, table, weights=kind)
        made[out.name] = out / IR
    return made


def difference(one: Callable[[Any], Logits], other: Callable[[Any], Logits], inputs: NDArray[Any]) -> float:
    """The largest difference of two models' outputs over a sequence, as a share of the range of the second."""
    pairs = [(one(value).copy(), other(value).copy()) for value in inputs]
    wanted = np.array([pair[1] for pair in pairs])
    return float(abs(np.array([pair[0] for pair in pairs]) - wanted).max() / np.ptp(wanted))


def parity(made: dict[str, Path], inputs: NDArray[Any]) -> Iterator[str]:
    """Lines of differences between OpenVINO and onnxruntime, on the same graph and on that for CPUs."""
    stateful = Stateful(made["ir-float32"])
    for name in ("openvino", "cpu-float32"):
        share = difference(stateful.step, load(made[name]).session().step, inputs)
        stateful.reset()
        yield f"float32 IR against the bundle {name} on onnxruntime, {len(inputs)} tokens: {share:.1e} of the range"


def step_times(step: Callable[[Any], Any], inputs: NDArray[Any]) -> tuple[float, float]:
    """Milliseconds of a step but for the first ones: by the clock (median), and of processor time in all threads (mean)."""
    taken = []
    for index, value in enumerate(inputs):
        if index == WARM:
            spent = time.process_time()
        begin = time.perf_counter()
        step(value)
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken[WARM:]), 1e3 * (time.process_time() - spent) / (len(inputs) - WARM)


def times(made: dict[str, Path], inputs: NDArray[Any], threads: int, rounds: int) -> Iterator[str]:
    """Lines of medians: each IR alternating with the bundle for CPUs of the same kind; ratios are of neighbouring rounds.

    OpenVINO computes in a thread of its own even where it is one: on a machine with other work a step waits for that thread
    to be scheduled, which the clock shows and processor time does not.
    """
    for kind in ("float32", "int8", "int4"):
        session = load(made[f"cpu-{kind}"], threads=threads).session()
        stateful = Stateful(made[f"ir-{kind}"], threads)
        found = [(*step_times(session.step, inputs), *step_times(stateful.step, inputs)) for _ in range(rounds)]
        clock, processor, clock_ir, processor_ir = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(row[2] / row[0] for row in found)
        share = statistics.median(row[3] / row[1] for row in found)
        yield (
            f"{kind}, {threads} threads: cpu bundle {clock:.3f} ms a step, IR {clock_ir:.3f} ms, ratio {ratio:.2f}; "
            f"processor time {processor:.3f} and {processor_ir:.3f} ms, ratio {share:.2f}"
        )


def cost(reference: Model, file: Path, ids: NDArray[np.int64]) -> tuple[float, float, float]:
    """KL in nats a token against the reference, share of equal likeliest tokens, change of the perplexity."""
    stateful, session, kl, same, loss = Stateful(file), reference.session(), list[float](), 0, 0.0
    for token, following in itertools.pairwise(ids):
        got, wanted = log_softmax(stateful.step(token)), log_softmax(session.step(int(token)))
        kl.append(float((np.exp(wanted) * (wanted - got)).sum()))
        same += int(got.argmax() == wanted.argmax())
        loss += float(wanted[following] - got[following])
    return float(np.mean(kl)), same / len(kl), float(np.expm1(loss / len(kl)))


def costs(made: dict[str, Path], text: Path, tokens: int) -> Iterator[str]:
    """Lines of sizes and of what each IR costs against the float32 bundle for CPUs."""
    reference = load(made["cpu-float32"])
    ids = read_ids(reference, text, tokens)
    for kind in ("float32", "int8", "int4"):
        file = made[f"ir-{kind}"]
        kl, same, change = cost(reference, file, ids)
        size = sum(path.stat().st_size for path in file.parent.iterdir()) / 1e6
        yield f"IR, {kind}: {size:.2f} MB, KL {kl:.4f}, same likeliest {same:.1%}, perplexity {change:+.2%}"


def sequence(model: Model, length: int) -> NDArray[Any]:
    """Random ids (T,), or standard normal vectors (T, D)."""
    rng = np.random.default_rng(3)
    if model.takes_ids:
        return rng.integers(0, model.output_width, length)
    return rng.standard_normal((length, model.manifest.model.width)).astype(np.float32)


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--text", type=Path, default=SHIPPED / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=["parity", "time", "cost"])
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    made = prepare(args.checkpoint, args.dir)
    inputs = sequence(load(made["cpu-float32"]), PARITY_TOKENS)
    jobs = {"parity": [parity(made, inputs)], "cost": [costs(made, args.text, args.tokens)]}
    jobs["time"] = [times(made, inputs[:TIMED_TOKENS], threads, args.rounds) for threads in args.threads]
    for name, tables in jobs.items():
        for line in (line for table in tables for line in table if args.only in (None, name)):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
