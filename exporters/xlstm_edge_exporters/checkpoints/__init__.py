"""Checkpoint families: find which one it is, and turn it into the canonical form.

The family is found from the tensors' names, because `model_type: xlstm` alone means two different things. One module a
family; each knows its own names and layouts and nothing else does. What stands around a model in the files people have
(prefixes, wrappers, a larger net, an optimizer, training settings) is taken off before, and noted.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError, escaped

from ..spec import SLSTM, ModelSpec
from ..weights import Stored, Weights
from . import large, large_config, v1, v1_config
from .base import Canonical
from .config import Section, read_config
from .files import locate, locate_configs
from .names import LANGUAGE_MODELS, LARGE_STACKS, Selection, select
from .notes import Notes
from .outline import describe_tensors
from .settings import check_around, check_beside
from .tensors import Opened, open_tensors

KEYS = v1_config.KEYS | large_config.KEYS  # every setting that some family reads


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: what it is, and its weights, not yet read.

    `config` and `stored` are the model's settings and tensors by its form's own names, without what stood around them.
    """

    folder: Path
    files: tuple[Path, ...]
    config: dict[str, Any]
    spec: ModelSpec
    weights: Weights
    stored: Stored = field(default_factory=lambda: Stored({}))
    notes: Notes = field(default_factory=Notes)


def open_checkpoint(path: str | Path, *, prefix: str | None = None, weights: str | None = None) -> Checkpoint:
    """Open a checkpoint folder or weights file; CheckpointError says in one sentence what is wrong with it.

    `prefix` names the model among several, or the part to take of a larger net, by what stands before its tensors'
    names; `weights` the file of a folder, or the key inside a torch file, or both as FILE:KEY.
    """
    located = locate(Path(path), weights)
    path, section, config = read_config(located.configs, KEYS)
    opened = open_tensors(located.weights, located.key)
    selection = select(opened, prefix)
    if prefix is None:
        _refuse_without_ends(selection, config)
    canonical = _canonical(selection, config, section)
    whole = selection.found.form in LANGUAGE_MODELS
    _check_beside(canonical.spec, section, config)
    notes = Notes(
        prefix=selection.found.prefix,
        key=opened.key,
        section=section.path,
        wrappers=selection.wrappers,
        renamed=selection.renamed,
        left_out=selection.left_out,
        ignored_tensors=selection.ignored,
        ignored_settings=(
            *canonical.ignored_settings,
            *check_around(section.around, KEYS, whole=whole),
        ),
        unread_files=located.unread,
    )
    files = (path, *located.weights)
    return Checkpoint(located.folder, files, config, canonical.spec, canonical.weights, selection.stored, notes)


def open_outline(path: str | Path) -> Checkpoint:
    """What the checkpoint with this config (a file, or a folder that holds it) will be: all of it but the weights."""
    configs = locate_configs(Path(path))
    file, section, config = read_config(configs, KEYS)
    tensors = describe_tensors(config, hugging_face=file.suffix == ".json", wrapped=_is_wrapped(section))
    selection = select(Opened(tensors))
    canonical = _canonical(selection, config, section)
    return Checkpoint(file.parent, (), config, canonical.spec, canonical.weights, selection.stored)


def _refuse_without_ends(selection: Selection, config: dict[str, Any]) -> None:
    """The blocks of a language model whose ends are missing: not a stack, unless its prefix is named."""
    inner = selection.found.prefix.rpartition(".")[0].rpartition(".")[2]
    ends = (
        selection.found.form not in LANGUAGE_MODELS and not selection.left_out and config.get("vocab_size") is not None
    )
    if ends and inner in ("xlstm_block_stack", "backbone"):
        raise CheckpointError(
            "expected an embedding and a head, as vocab_size in the config says, got a checkpoint without them; export the "
            f"complete checkpoint, or pass --prefix {escaped(selection.found.prefix)} for its stack of float vectors"
        )


def _check_beside(spec: ModelSpec, section: Section, config: dict[str, Any]) -> None:
    """What no tensor shows must stand among the model's own settings, or be what is implied."""
    if spec.family in ("xlstm_large", "xlstm_large_stack", "xlstm_hf"):
        check_beside(
            section.around,
            config,
            {"gate_soft_cap", "norm_eps"} | ({"output_logit_soft_cap"} if spec.vocab_size else set()),
        )
    elif any(isinstance(block.mixer, SLSTM) and block.ffn is not None for block in spec.blocks):
        own = {key: value for key, value in config.items() if isinstance(value, dict)}
        check_beside({**section.around, **{k: v for k, v in config.items() if k not in own}}, own, {"act_fn"})


def _is_wrapped(section: Section) -> bool:
    """Whether this is a v1 model in the Hugging Face wrapper that ties embedding and head."""
    return section.path is not None and section.path.rpartition(".")[2] == "_xlstm_config"


def _canonical(selection: Selection, config: dict[str, Any], section: Section) -> Canonical:
    stored, form = selection.stored, selection.found.form
    if form == "xlstm_large":
        return large.load_package(stored, config)
    if form == "xlstm_hf":
        return large.load_hugging_face(stored, config)
    if form in LARGE_STACKS:
        return large.load_stack(stored, config, alone=not selection.left_out, hugging_face=form == "xlstm_hf_stack")
    if form == "xlstm_stack":
        return v1.load(stored, config, "xlstm_stack", alone=not selection.left_out)
    wrapped = _is_wrapped(section)
    if wrapped and section.around.get("tie_word_embeddings") is False and "lm_head.weight" not in stored:
        raise CheckpointError(
            "expected an output head, as tie_word_embeddings false says, got a checkpoint without lm_head.weight; "
            "export the complete checkpoint"
        )
    return v1.load(stored, config, "xlstm_lm_hf" if wrapped else "xlstm_lm", alone=not selection.left_out)
