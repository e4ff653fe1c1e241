"""The verbs behind the command line, for programs. Exporter modules are imported inside, because they load torch."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.errors import DependencyError, InputError, shown
from xlstm_edge_runtime.manifest import Manifest, has_manifest, read_manifest
from xlstm_edge_runtime.plugins import require
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.providers import choose_provider
from xlstm_edge_runtime.reading import check_path
from xlstm_edge_runtime.verify import Check, verify_bundle

from .facts import describe_bundle, describe_checkpoint
from .sizing import plan_export

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint
    from xlstm_edge_exporters.recipe import Recipe

EXPORT_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml"}


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """An exported bundle: where it is, what it says of itself, and what the export took from the checkpoint and left.

    `use` says in words where it runs, `provider` with which of the runtime's providers.
    """

    path: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()
    use: str = ""
    provider: str = "cpu"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}: {self.manifest.summary()})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export as a caller gives them: the fields of `xlstm_edge_exporters.recipe.Recipe`; None is not given."""

    target: str | None = None
    soc: str | None = None
    ahead_of_time: bool | None = None
    chunk: int | None = None
    all_logits: bool | None = None
    quantize: str | None = None
    method: str | None = None
    calibrate: str | Path | None = None
    calibration_tokens: int | None = None
    block_size: int | None = None
    embedding_bits: int | None = None
    head_bits: int | None = None
    target_mb: float | None = None
    target_bpw: float | None = None
    keep: Mapping[str, int] | None = None
    tokenizer: str | Path | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given, by name, paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if v is not None}


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    target: str | None = None,
    soc: str | None = None,
    ahead_of_time: bool | None = None,
    chunk: int | None = None,
    all_logits: bool | None = None,
    quantize: str | None = None,
    method: str | None = None,
    calibrate: str | Path | None = None,
    calibration_tokens: int | None = None,
    block_size: int | None = None,
    embedding_bits: int | None = None,
    head_bits: int | None = None,
    target_mb: float | None = None,
    target_bpw: float | None = None,
    keep: Mapping[str, int] | None = None,
    tokenizer: str | Path | None = None,
    recipe: str | Path | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Export a checkpoint (folder or weights file) to a bundle folder.

    The first options are the fields of `xlstm_edge_exporters.recipe.Recipe`: `target` is where the bundle is to run, "cpu"
    unless given (`xlstm_edge_exporters.targets`), `soc` the chips to compile it for ("8gen2,8gen3"), `ahead_of_time` adds the
    form of the target's own runtime, `chunk` is the most tokens of one call, `quantize` "int8", "int4", "mixed" or "a16w8",
    `method` "rtn" or "gptq", `calibrate` a text file, "self" for text that the model writes (the default of int4, mixed and
    a16w8) or "none", `calibration_tokens` how many, `keep` {pattern: bits}, `tokenizer` a file, "byte" or "none". They override
    those of the TOML file `recipe`; None is not given. Where a checkpoint holds several models, or the xLSTM is a part of a
    larger net, `prefix` names the one to take by what stands before its tensors' names, and `weights` the file of a folder, the
    key inside a torch file, or FILE:KEY. The bundle's `notes` say in a line each what else there is to know, as that it has no
    text.

    With `resume` an interrupted export leaves its finished tensors in BUNDLE.resume, and the next call with the same
    options goes on from them.

    Raises an XlstmEdgeError if anything is wrong; then nothing has been written, and what `force` would replace stands.
    """
    options = ExportOptions(
        target=target,
        soc=soc,
        ahead_of_time=ahead_of_time,
        chunk=chunk,
        all_logits=all_logits,
        quantize=quantize,
        method=method,
        calibrate=calibrate,
        calibration_tokens=calibration_tokens,
        block_size=block_size,
        embedding_bits=embedding_bits,
        head_bits=head_bits,
        target_mb=target_mb,
        target_bpw=target_bpw,
        keep=keep,
        tokenizer=tokenizer,
    )
    return export_with(
        checkpoint,
        bundle,
        options,
        recipe=recipe,
        prefix=prefix,
        weights=weights,
        force=force,
        resume=resume,
        progress=progress,
    )


def export_with(
    checkpoint: str | Path,
    bundle: str | Path,
    options: ExportOptions,
    *,
    recipe: str | Path | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """`export`, its options as one value."""
    check_path(checkpoint, "a checkpoint")
    chosen = check_export(bundle, options, recipe=recipe, force=force)
    source = open_checkpoint(checkpoint, prefix=prefix, weights=weights)
    from xlstm_edge_exporters import hub  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.export import export_checkpoint  # noqa: PLC0415  # same
    from xlstm_edge_exporters.targets import TARGETS  # noqa: PLC0415  # same

    papers = hub.papers(source.folder) if hub.is_on_hub(checkpoint) else None
    notes = list(source.notes.lines())
    manifest = export_checkpoint(
        source, bundle, chosen, force=force, resume=resume, papers=papers, progress=progress, note=notes.append
    )
    target = TARGETS[chosen.target]
    return Bundle(Path(bundle), manifest, tuple(notes), target.use, target.provider)


def check_export(
    bundle: str | Path, options: ExportOptions, *, recipe: str | Path | None = None, force: bool = False
) -> "Recipe":
    """What can be said of an export before torch is loaded: the recipe, or InputError for options and paths."""
    from xlstm_edge_exporters.output_folder import refuse_target  # noqa: PLC0415  # an extra
    from xlstm_edge_exporters.recipe import read_recipe  # noqa: PLC0415  # same
    from xlstm_edge_exporters.targets import TARGETS  # noqa: PLC0415  # same

    place = check_path(bundle, "a folder for the bundle")
    chosen = read_recipe(None if recipe is None else check_path(recipe, "a TOML file"), options.given())
    refuse_target(place, force)
    target = TARGETS[chosen.target]
    if chosen.chips:
        require(choose_provider(target.provider).provider)
    if chosen.ahead_of_time:
        integers = () if chosen.quantize is None else target.integer_packages
        _require_packages(target.packages + integers, target.extra)
    return chosen


def _require_packages(names: Sequence[str], extra: str) -> None:
    """DependencyError for one that cannot be imported, with the extra that brings it; before work that would need it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise DependencyError(
                f"expected the package {name} for --compile, got none; pip install 'xlstm-edge[{extra}]'"
            )


def verify(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
    progress: Progress = no_progress,
) -> list[Check]:
    """All checks of a bundle, also against its checkpoint if given; VerificationError for the first that fails.

    `prefix`, `weights` and `tokenizer` as they were for the export; `provider`, `provider_options` and `allow_fallback` as
    for `load`. Against the checkpoint the bundle is compared on the CPU.
    """
    checks = list[Check]()
    progress("verifying", 0, 0)
    checks += verify_bundle(
        bundle,
        threads=threads,
        provider=provider,
        provider_options=provider_options,
        allow_fallback=allow_fallback,
    )
    if against is not None:
        source = open_checkpoint(against, prefix=prefix, weights=weights)
        from xlstm_edge_exporters.verify import verify_against  # noqa: PLC0415  # loads torch

        checks += verify_against(bundle, source, tokenizer=tokenizer, threads=threads, progress=progress)
    return checks


def inspect(path: str | Path, *, prefix: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What a bundle or a checkpoint is: family, dimensions, state table, files; as plain data."""
    check_path(path, "a bundle or checkpoint")
    if has_manifest(path):
        return describe_bundle(read_manifest(path))
    return describe_checkpoint(open_checkpoint(path, prefix=prefix, weights=weights))


def plan(
    checkpoint: str | Path,
    *,
    prefix: str | None = None,
    weights: str | None = None,
    bandwidth: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """What an export of a checkpoint will be, from its headers; a config alone, or `hf:OWNER/NAME`, is enough.

    Keys: parameters, bytes by scheme, state_bytes, export (seconds of int4, seconds_rounded, memory), tokens_per_second by
    scheme (bounds), fits, advice. `bandwidth` is like "25GB/s", `device` a name of `xlstm_edge.sizing.DEVICES`; without both
    this machine is measured.
    """
    check_path(checkpoint, "a checkpoint")
    load_exporters()
    from xlstm_edge_exporters import checkpoints, hub  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.checkpoints.files import is_config  # noqa: PLC0415  # same

    if hub.is_on_hub(checkpoint):
        checkpoint = hub.fetch(checkpoint, config_only=True)
    if is_config(Path(checkpoint)):
        return plan_export(checkpoints.open_outline(checkpoint), bandwidth=bandwidth, device=device)
    source = open_checkpoint(checkpoint, prefix=prefix, weights=weights)
    return plan_export(source, bandwidth=bandwidth, device=device)


def load_exporters() -> None:
    """Import what reading checkpoints needs, torch above all; DependencyError if it is not installed."""
    try:
        from xlstm_edge_exporters import checkpoints, export  # noqa: F401, PLC0415  # loads torch
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_PACKAGES:
            raise
        raise DependencyError(
            f"expected the package {error.name} for reading checkpoints, got none; pip install 'xlstm-edge[export]'"
        ) from error


def open_checkpoint(path: str | Path, *, prefix: str | None = None, weights: str | None = None) -> "Checkpoint":
    """The exporter's `open_checkpoint`; DependencyError if its packages are not installed."""
    check_path(path, "a checkpoint")
    for name, value in (("prefix", prefix), ("weights", weights)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"expected {name} as text, got {shown(value)}; correct it")
    load_exporters()
    from xlstm_edge_exporters import checkpoints, hub  # noqa: PLC0415  # loads torch

    folder = hub.fetch(path) if hub.is_on_hub(path) else path
    return checkpoints.open_checkpoint(folder, prefix=prefix, weights=weights)
