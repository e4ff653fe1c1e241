"""Turn manifests and checkpoints into plain data, and plain data into tables for people."""

import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.errors import DependencyError, InputError
from xlstm_edge_runtime.manifest import Manifest

if TYPE_CHECKING:
    from rich.table import Table

    from xlstm_edge_exporters.checkpoints import Checkpoint

Facts = dict[str, Any]


def describe_bundle(manifest: Manifest) -> Facts:
    """Everything a bundle says of itself."""
    return {
        "kind": "bundle",
        "family": manifest.family,
        "producer": manifest.producer,
        "flavour": manifest.graph.flavour,
        "opset": manifest.graph.opset,
        "minimum_onnxruntime": manifest.onnxruntime,
        "width": manifest.model.width,
        "vocab_size": manifest.model.vocab_size,
        "blocks": list(manifest.model.blocks),
        "parameters": manifest.model.parameters,
        "tied": manifest.model.tied,
        "chunk": manifest.graph.chunk,
        "tokenizer": manifest.tokenizer.kind,
        "special_tokens": {
            "bos": manifest.special_tokens.bos,
            "pad": manifest.special_tokens.pad,
            "stop": list(manifest.special_tokens.stop),
            "add_bos": manifest.special_tokens.add_bos,
        },
        "sampling": dict(manifest.sampling),
        "source_sha256": manifest.source,
        "state_bytes": manifest.state.nbytes,
        "state": [{"name": row.name, "shape": list(row.whole_shape), "initial": row.initial} for row in manifest.state],
        "files": {name: {"bytes": e.bytes, "sha256": e.sha256} for name, e in sorted(manifest.files.items())},
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }


def describe_checkpoint(checkpoint: "Checkpoint") -> Facts:
    """What a checkpoint would become."""
    from xlstm_edge_exporters.bundle import KINDS, count_parameters  # noqa: PLC0415  # loads torch

    spec, notes = checkpoint.spec, checkpoint.notes
    table = spec.state_table()
    return {
        "kind": "checkpoint",
        "family": spec.family,
        "width": spec.width,
        "vocab_size": spec.vocab_size,
        "blocks": [KINDS[type(block.mixer)] for block in spec.blocks],
        "parameters": count_parameters(spec),
        "tied": spec.tied,
        "context_length": spec.context_length,
        "taken": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(notes).items()},
        "notes": notes.lines(),
        "state_bytes": table.nbytes,
        "state": [{"name": row.name, "shape": list(row.shape), "initial": row.initial} for row in table],
        "files": {path.name: {"bytes": path.stat().st_size} for path in checkpoint.files},
        "bytes": sum(path.stat().st_size for path in checkpoint.files),
    }


def facts_table(facts: Facts, title: str) -> "Table":
    """The facts a person wants first, one a row."""
    from rich.table import Table  # noqa: PLC0415  # an extra

    from .terminal import plain  # noqa: PLC0415  # same

    table = Table(title=plain(title), show_header=False, title_justify="left")
    counts: Counter[str] = Counter(facts["blocks"])
    blocks = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    rows = {
        "family": facts["family"],
        "blocks": f"{blocks}, width {facts['width']}",
        "vocabulary": "none: float vectors in, float vectors out"
        if facts["vocab_size"] is None
        else facts["vocab_size"],
        "parameters": f"{facts['parameters']:,}" + (" (embedding and head tied)" if facts["tied"] else ""),
        "state": f"{human(facts['state_bytes'])} a session, whatever its length ({len(facts['state'])} tensors)",
    }
    if facts["kind"] == "bundle":
        rows["graph"] = f"{facts['flavour']}, opset {facts['opset']}, up to {facts['chunk']} tokens a call"
        rows["runtime"] = f"onnxruntime {facts['minimum_onnxruntime']} or newer"
        rows["tokenizer"] = facts["tokenizer"]
    if facts.get("notes"):
        rows["notes"] = "\n".join(facts["notes"])
    rows["files"] = "\n".join(f"{name}  {human(entry['bytes'])}" for name, entry in facts["files"].items())
    for name, value in rows.items():
        table.add_row(name, plain(value))
    return table


def state_table(facts: Facts) -> "Table":
    """The state table, equal shapes of many blocks in one row."""
    from rich.table import Table  # noqa: PLC0415  # an extra

    from .terminal import plain  # noqa: PLC0415  # same

    table = Table("state", "shape", "initial", "tensors", title="State, float32", title_justify="left")
    counts: Counter[tuple[str, tuple[int, ...], float]] = Counter(
        (row["name"].split(".")[-1], tuple(row["shape"]), row["initial"]) for row in facts["state"]
    )
    for (name, shape, initial), count in counts.items():
        table.add_row(plain(name), " x ".join(map(str, shape)), f"{initial:g}", str(count))
    return table


def human(size: float) -> str:
    """Bytes for people: 1,234,567 -> 1.23 MB (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def check_plot_path(path: Path | None) -> None:
    """Before minutes of measuring: InputError unless a PNG can be written there, DependencyError without matplotlib."""
    if path is None:
        return
    if path.suffix.lower() != ".png" or not path.parent.is_dir() or path.is_dir():
        raise InputError(f"expected a plot file FILE.png in a folder that exists, came {path}; choose another")
    figure(1, 1)


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure in inches; DependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise DependencyError(
            "expected the package matplotlib for a plot, came none; pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; the peak where the system does not tell more."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:
        import resource  # noqa: PLC0415  # not on Windows
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
