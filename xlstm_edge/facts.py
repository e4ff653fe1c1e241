"""What a bundle or a checkpoint is, as plain data."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.manifest import Manifest

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint

Facts = dict[str, Any]


def describe_bundle(manifest: Manifest) -> Facts:
    """Everything a bundle says of itself."""
    return {
        "kind": "bundle",
        "family": manifest.family,
        "producer": manifest.producer,
        "target": manifest.graph.target,
        "opset": manifest.graph.opset,
        "minimum_onnxruntime": manifest.onnxruntime,
        "width": manifest.model.width,
        "vocab_size": manifest.model.vocab_size,
        "blocks": list(manifest.model.blocks),
        "parameters": manifest.model.parameters,
        "tied": manifest.model.tied,
        "chunk": manifest.graph.chunk,
        "prompt_graph": manifest.graph.prompt,
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
        "state": [{"name": row.name, "shape": list(row.shape), "initial": row.initial} for row in manifest.state],
        "compiled": {name: asdict(entry) for name, entry in sorted(manifest.compiled.items())},
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
