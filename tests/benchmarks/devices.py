"""Every target on every kind of checkpoint: where its nodes land, how far it is from the CPU's float32, what it weighs.

    python tests/benchmarks/devices.py FOLDER [NAME=CHECKPOINT ...] [--tokens 1000] [--steps 8]

The shipped model, a v1 model of odd sizes, and an xLSTM-Large whose gates sit at their caps come by themselves; others are
named. Providers that are not installed here leave their rows out, and say so: `make devices` brings Qualcomm's simulator and
OpenVINO. Prints the table of exporters/targets.md.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script

import xlstm_edge
import xlstm_edge_runtime as xr
from tests.conftest import BY_NAME, SHIPPED
from tests.gates import with_gates
from tests.oracles.cases import Case, large
from tests.oracles.official import make_checkpoint
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.float16 import measure_float16
from xlstm_edge_exporters.reference import Variant, run_variants
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.providers import PROVIDERS

HOT = {"at caps, 14 and 3": (14, 3), "at caps, 75 and 75": (75, 75), "at caps, 75 and 0": (75, 0)}
# Row -> target, options of the export, provider, its options.
ROWS: dict[str, tuple[str, dict[str, Any], str, dict[str, str]]] = {
    "cpu": ("cpu", {}, "cpu", {}),
    "portable": ("portable", {}, "cpu", {}),
    "web": ("web", {}, "cpu", {}),
    "coreml": ("coreml", {}, "", {}),
    "openvino": ("openvino", {}, "openvino", {}),
    "qnn": ("qnn", {}, "qnn", {"soc": "8gen2"}),
    "qnn, a16w8": ("qnn", {"quantize": "a16w8"}, "qnn", {"soc": "8gen2"}),
}


def checkpoints(folder: Path, named: list[str]) -> Iterator[tuple[str, Path]]:
    """Name and place of each; random ones are made."""
    yield "shipped", SHIPPED
    yield "v1, odd sizes", make_checkpoint(BY_NAME["lm-mixed"], folder / "odd")
    base = make_checkpoint(Case("hot", "xlstm_large", large(256, 4, 4, 500)), folder / "base")
    for name, (igate, fgate) in HOT.items():
        yield name, with_gates(base, folder / name.replace(", ", "-").replace(" ", "-"), igate=igate, fgate=fgate)
    for word in named:
        name, _, place = word.partition("=")
        yield name, Path(place)


def written_text(model: xr.Model, count: int) -> list[int]:
    """Ids that the model draws itself, from a fixed seed."""
    tokens = model.session().generate([1], max_tokens=count, temperature=1.0, seed=1, ignore_eos=True)
    return [1, *(event.id for event in tokens if isinstance(event, xr.Token))][:count]


def compared(model: xr.Model, reference: xr.Model, ids: list[int]) -> tuple[float, int, bool]:
    """Largest difference as a share of the range, outputs with the same likeliest token, whether all are finite."""
    got, wanted, worst, equal, finite = model.session(), reference.session(), 0.0, 0, True
    for token in ids:
        output, expected = got.step(token), wanted.step(token)
        worst = max(worst, float(np.abs(output - expected).max() / np.ptp(expected)))
        equal += int(output.argmax() == expected.argmax())
        finite &= bool(np.isfinite(output).all())
    return worst, equal, finite


def outputs_of(source: Path) -> Callable[[Any], Any]:
    """The checkpoint's own outputs in float32, for any inputs."""
    checkpoint, way = open_checkpoint(source), {"float32": Variant(torch.float32)}
    return lambda inputs: run_variants(checkpoint.spec, checkpoint.weights, inputs, way)["float32"]


def row(
    name: str, source: Path, where: Path, reference: xr.Model, ids: list[int], arguments: argparse.Namespace
) -> list[str]:
    """Cells of one bundle: where it ran, nodes there, nodes on the CPU, difference, argmax, finite; in float16; bytes."""
    target, _, provider, options = ROWS[name]
    manifest = read_manifest(where)
    size = f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:.2f}"
    half = "-"
    if name == "qnn":
        half = "as coreml"
    elif target in ("coreml", "qnn"):
        report = measure_float16(
            where / "model.onnx", manifest.state, manifest.model.parameters, outputs_of(source), tokens=arguments.tokens
        )
        half = f"{report.difference:.2%}, {report.equal}/{report.tokens}, {'saturated' if report.saturated else 'in range'}"
    if not provider:
        return ["checker: ML program", *coreml_verdict(where / "model.onnx"), "-", "-", "-", half, size]
    if not there(provider):
        print(f"left out: {name} needs {PROVIDERS[provider].package} and a device for it", file=sys.stderr)
        return []
    model = xr.load(where, threads=1, provider=provider, provider_options=options)
    steps = ids[: arguments.steps] if provider == "qnn" else ids
    worst, equal, finite = compared(model, reference, steps)
    nodes = next(iter(model.placement.values()))
    return [provider, f"{nodes}", "0", f"{worst:.1e}", f"{equal}/{len(steps)}", "yes" if finite else "no", half, size]


def there(name: str) -> bool:
    """Whether a provider is installed and finds a device; OpenVINO's finds only Intel's."""
    provider = PROVIDERS[name]
    if plugins.installed(provider) is None:
        return False
    plugins.register(provider)
    return plugins.devices(provider) != []


def coreml_verdict(graph: Path) -> list[str]:
    """Partitions and nodes outside, as onnxruntime's checker counts them."""
    import re

    from tests.exporters.targets.test_coreml import verdict

    text = verdict(graph)
    found = re.search(r"(\d+) partitions with a total of (\d+)/(\d+) nodes", text)
    assert found is not None
    return [found[1], str(int(found[3]) - int(found[2]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("named", nargs="*", help="NAME=CHECKPOINT")
    parser.add_argument("--tokens", type=int, default=1000, help="of the float16 simulation")
    parser.add_argument("--steps", type=int, default=8, help="on Qualcomm's simulator")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    print(
        "| target | checkpoint | on | nodes there | on the CPU | difference | same likeliest | finite | float16 | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, source in checkpoints(arguments.folder, arguments.named):
        reference, ids = None, list[int]()
        for target, (where, options, _, _) in ROWS.items():
            out = arguments.folder / "bundles" / f"{target}-{name}".replace(", ", "-").replace(" ", "-")
            out.parent.mkdir(exist_ok=True)
            tokenizer = "none" if options and name != "shipped" else None
            try:
                xlstm_edge.export(source, out, target=where, tokenizer=tokenizer, force=out.exists(), **options)
            except xr.CheckpointError as error:
                print(f"| {target} | {name} | refused: {error} |", flush=True)
                continue
            if reference is None:
                reference = xr.load(out, threads=1)
                ids = written_text(reference, 200)
            cells = row(target, source, out, reference, ids, arguments)
            if cells:
                print(f"| {target} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
