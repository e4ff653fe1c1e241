"""LiteRT's form of a bundle beside the bundle for CPUs on onnxruntime: difference, which kernels run it, time of a step.

    python tests/benchmarks/litert.py DIR                      # the shipped model
    python tests/benchmarks/litert.py DIR --checkpoint CKPT
    python tests/benchmarks/litert.py DIR --only time --threads 1

Needs `pip install 'xlstm-edge[litert]'`. Bundles are made in DIR unless they are there. Machines are noisy: what counts is the
ratio of rounds that alternate in one process, and medians of single steps. A step copies the states from outputs to inputs.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script

import xlstm_edge
from tests.benchmarks.openvino_ir import PARITY_TOKENS, SHIPPED, TIMED_TOKENS, Logits, difference, sequence, step_times
from xlstm_edge_exporters.targets.tflite import TFLITE, argument_name
from xlstm_edge_runtime import load
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.state import State, StateTable


class Decoder:
    """The signature `decode` of a file on LiteRT's CPU, its states held here; steps as a session does."""

    def __init__(self, file: Path, table: StateTable, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(file), num_threads=threads)
        self.interpreter.allocate_tensors()
        runner = self.interpreter.get_signature_runner("decode")
        self.inputs, self.outputs = runner.get_input_details(), runner.get_output_details()
        names = {argument_name(row.input_name): argument_name(row.output_name) for row in table}
        (self._input,) = (self._view(detail) for name, detail in self.inputs.items() if name not in names)
        (self._output,) = (self._view(d) for name, d in self.outputs.items() if name not in names.values())
        self._states = [(self._view(self.inputs[past]), self._view(self.outputs[now])) for past, now in names.items()]
        self._table = table
        self.reset()

    def _view(self, detail: dict[str, Any]) -> Any:
        """A function that gives the tensor itself; LiteRT refuses to run while somebody keeps what it gave."""
        return self.interpreter.tensor(detail["index"])

    def step(self, value: Any) -> Logits:
        """Logits (V,) after a token, or the output (D,) after a vector."""
        self._input()[:] = value
        self.interpreter.invoke()
        for past, present in self._states:
            past()[:] = present()
        output: Logits = self._output().reshape(-1).copy()
        return output

    def reset(self) -> None:
        """Back to the start."""
        self._hold(self._table.initial())

    def set_state(self, state: State) -> None:
        """Go on from what a session remembers."""
        self._hold(self._table.to_graph(state))

    def state(self) -> State:
        """What it remembers, as a session has it."""
        graph = {row.name: past().copy() for row, (past, _) in zip(self._table, self._states, strict=True)}
        return self._table.from_graph(graph)

    def _hold(self, arrays: State) -> None:
        for row, (past, _) in zip(self._table, self._states, strict=True):
            past()[:] = arrays[row.name]

    def outside(self) -> Counter[str]:
        """Operators that LiteRT runs one by one; those of its kernels for CPUs (XNNPACK) are together a `DELEGATE`."""
        made: dict[int, dict[str, Any]] = {}
        for (
            operator
        ) in self.interpreter._get_ops_details():  # what a delegate took stays in it; the delegates come last
            made |= {int(tensor): operator for tensor in operator["outputs"]}
        run, wanted = dict[int, str](), {int(detail["index"]) for detail in self.outputs.values()}
        while wanted:
            operator = made.get(wanted.pop(), {})
            if operator and operator["index"] not in run:
                run[operator["index"]] = operator["op_name"]
                wanted |= {int(tensor) for tensor in operator["inputs"]}
        return Counter(run.values())


class Caller:
    """A signature of a file on LiteRT's CPU, called with all its inputs, which a call copies: `read(tokens)` as a session."""

    def __init__(self, file: Path, table: StateTable, signature: str, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._runner = Interpreter(model_path=str(file), num_threads=threads).get_signature_runner(signature)
        self._names = {argument_name(row.output_name): argument_name(row.input_name) for row in table}
        initial = table.initial()
        self.state = {argument_name(row.input_name): initial[row.name] for row in table}
        details = self._runner.get_input_details()
        (self._input,) = (name for name in details if name not in self.state)
        self._type = details[self._input]["dtype"]

    def read(self, tokens: NDArray[Any]) -> Logits:
        """The output after the last of as many tokens, or vectors, as the signature takes."""
        given = self._runner(**{self._input: tokens[None].astype(self._type)}, **self.state)
        self.state = {past: given.pop(present) for present, past in self._names.items()}
        (output,) = given.values()
        last: Logits = output.reshape(-1, output.shape[-1])[-1]
        return last


def prepare(checkpoint: Path, folder: Path, chunk: int) -> dict[str, Path]:
    """Name -> the bundles for CPUs and for LiteRT, the latter with its own form and a graph for prompts."""
    made = {name: folder / name for name in ("cpu", "litert")}
    for name, out in made.items():
        if not out.exists():
            xlstm_edge.export(
                checkpoint, out, target=name, ahead_of_time=name == "litert", chunk=None if name == "cpu" else chunk
            )
    return made


def decoder_of(bundle: Path, threads: int = 1) -> Decoder:
    """A bundle's own form for LiteRT."""
    return Decoder(bundle / TFLITE, read_manifest(bundle).state, threads)


def parity(made: dict[str, Path], inputs: NDArray[Any]) -> Iterator[str]:
    """Lines of differences between LiteRT and onnxruntime, on the same graph and on that for CPUs."""
    decoder = decoder_of(made["litert"])
    yield f"operators of LiteRT: {dict(decoder.outside())}"
    for name in ("litert", "cpu"):
        share = difference(decoder.step, load(made[name]).session().step, inputs)
        decoder.reset()
        yield f"LiteRT against the bundle {name} on onnxruntime, {len(inputs)} tokens: {share:.1e} of the range"


def times(made: dict[str, Path], inputs: NDArray[Any], threads: int, rounds: int) -> str:
    """A line of medians: LiteRT alternating with the bundle for CPUs; the ratio is of neighbouring rounds."""
    session, decoder = load(made["cpu"], threads=threads).session(), decoder_of(made["litert"], threads)
    found = [(*step_times(session.step, inputs), *step_times(decoder.step, inputs)) for _ in range(rounds)]
    clock, processor, clock_litert, processor_litert = (
        statistics.median(column) for column in zip(*found, strict=True)
    )
    ratio = statistics.median(row[2] / row[0] for row in found)
    share = statistics.median(row[3] / row[1] for row in found)
    return (
        f"{threads} threads: cpu bundle {clock:.3f} ms a step, LiteRT {clock_litert:.3f} ms, ratio {ratio:.2f}; "
        f"processor time {processor:.3f} and {processor_litert:.3f} ms, ratio {share:.2f}"
    )


def prompts(bundle: Path, inputs: NDArray[Any], threads: int, rounds: int) -> str:
    """A line of medians: a prompt token by token, and in one call."""
    manifest = read_manifest(bundle)
    part = inputs[: manifest.graph.chunk]
    single, whole = (Caller(bundle / TFLITE, manifest.state, name, threads) for name in ("decode", "prefill"))
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for token in part:
            single.read(token[None])
        middle = time.perf_counter()
        whole.read(part)
        found.append((middle - begin, time.perf_counter() - middle))
    one_by_one, together = (1e3 * statistics.median(column) for column in zip(*found, strict=True))
    return (
        f"{threads} threads: {len(part)} tokens one by one {one_by_one:.1f} ms, in one call {together:.1f} ms, ratio "
        f"{statistics.median(b / a for a, b in found):.2f}"
    )


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--only", choices=["parity", "time", "prompts"])
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    made = prepare(args.checkpoint, args.dir, args.chunk)
    inputs = sequence(load(made["cpu"]), PARITY_TOKENS)
    jobs = {
        "parity": parity(made, inputs),
        "time": (times(made, inputs[:TIMED_TOKENS], threads, args.rounds) for threads in args.threads),
        "prompts": (prompts(made["litert"], inputs, threads, args.rounds) for threads in args.threads),
    }
    for line in (line for name, lines in jobs.items() for line in lines if args.only in (None, name)):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
