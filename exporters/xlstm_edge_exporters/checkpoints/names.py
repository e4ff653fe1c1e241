"""Find the model among a checkpoint's tensors: what stands before its names, and what is not part of it.

Wrappers put a prefix before every name (`module.`, `_orig_mod.`, `model.`, `base_model.model.`, any other, nested), a
larger net keeps an xLSTM stack as one of its parts, an averaged copy lies beside the model. A model is found by its
blocks; the prefix is whatever stands before them. One must be left, or the user names its prefix. What lies outside is
left out and named; what lies inside and is unknown is for the audit to refuse.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from xlstm_edge_runtime.errors import CheckpointError, escaped, shown

from ..weights import Stored, listed
from .tensors import Opened

FAMILIES = "xLSTM v1 language models and block stacks, xLSTM-Large and its block stacks, Hugging Face xLSTMForCausalLM"
UNSUPPORTED = {
    r"(^|\.)block_stack\.blocks\.[0-9]+\.slstm_layer\.": "a TiRex forecaster",
    r"(^|\.)stack\.[0-9]+\.(time|variate)_mixer\.": "a TiRex-2 forecaster",
    r"(^|\.)lora_[A-Za-z]|\.base_layer\.": "adapters beside the weights (merge them into the model and save it)",
    r"\.(qweight|qzeros|SCB|absmax|quant_map|quant_state\b.*|weight_scale|scales)$": "a quantized checkpoint",
    r"\.Dense_0\.kernel$": "a JAX checkpoint (convert it to the xLSTM-Large form first)",
}
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
BLOCK = re.compile(r"(?:^|\.)(blocks)\.([0-9]{1,9})\.(?:xlstm\.(mlstm|slstm)_cell|mlstm_layer)\.")
# Buffers and training helpers that cannot change the outputs.
HARMLESS = re.compile(
    r"(.*\.)?(num_batches_tracked|position_ids|causal_mask|n_averaged|num_updates|global_step|step|epoch)|"
    r"(.*\.)?(loss|loss_fn|loss_func|criterion|metrics?|(train|val|valid|test)_(acc|accuracy|loss|metrics?|ppl|perplexity))"
    r"\..*"
)
CLASSIFIER = re.compile(r"(^|\.)(classifier|score)\.(weight|bias)$")
Form = Literal["xlstm_lm", "xlstm_stack", "xlstm_large", "xlstm_hf", "xlstm_large_stack", "xlstm_hf_stack"]
LARGE_STACKS = ("xlstm_large_stack", "xlstm_hf_stack")  # of the package's form, and of Hugging Face's
LANGUAGE_MODELS = {"xlstm_lm", "xlstm_large", "xlstm_hf"}
STACK_OF: dict[str, Form] = {
    "xlstm_lm": "xlstm_stack",
    "xlstm_large": "xlstm_large_stack",
    "xlstm_hf": "xlstm_hf_stack",
}
# The parts of each form, by which its tensors are told from those around them.
PARTS = {
    "xlstm_lm": ("xlstm_block_stack.", "token_embedding.", "lm_head."),
    "xlstm_large": ("backbone.", "embedding.", "lm_head."),
    "xlstm_hf": ("backbone.", "lm_head."),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A model among the tensors: its form, and what stands before its names."""

    form: Form
    prefix: str


@dataclass(frozen=True, slots=True)
class Selection:
    """One model's tensors by its form's own names, and what was done to get them."""

    found: Found
    stored: Stored
    wrappers: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    ignored: tuple[str, ...]


def select(opened: Opened, prefix: str | None = None) -> Selection:
    """The model of the checkpoint, or the one with this prefix; CheckpointError if there is none, or more than one."""
    names, wrappers = _cleaned([*opened.tensors, *opened.odd])
    models = _models(names.values())
    _refuse_unsupported(names, models)
    if prefix is not None:
        prefix = _clean(prefix if prefix[-1:] in (".", "") else prefix + ".", wrappers)
    found = _choose(models, prefix)
    inside = {old: new for old, new in names.items() if new.startswith(found.prefix)}
    outside = {old: new for old, new in names.items() if old not in inside}
    others = [m.prefix for m in models if m.prefix.startswith(found.prefix) and m.prefix != found.prefix]
    if found.form in LARGE_STACKS:
        _refuse_halves(found, set(names.values()), prefix)
        others.append(found.prefix + "embeddings.")  # Hugging Face's form keeps its embedding beside the blocks
    for old, new in list(inside.items()):  # another model within this one's prefix, as a teacher beside a student
        if any(new.startswith(other) for other in others):
            outside[old] = inside.pop(old)
    rivals = [m for m in models if m != found]
    renamed = _head(opened, found, rivals, inside, outside)
    _refuse_classifier(found, names, inside, prefix)
    _refuse_around(found, rivals, outside, renamed, prefix)
    mapping = {old: new[len(found.prefix) :] for old, new in inside.items()} | dict(renamed)
    if found.form in LARGE_STACKS:  # named as in the whole model
        mapping = {old: "backbone." + new for old, new in mapping.items()}
    ignored = sorted(old for old, new in mapping.items() if HARMLESS.fullmatch(new))
    mapping = {old: new for old, new in mapping.items() if not HARMLESS.fullmatch(new)}
    stored = Stored(
        {new: opened.tensors[old] for old, new in mapping.items() if old in opened.tensors},
        {new: opened.odd[old] for old, new in mapping.items() if old in opened.odd},
        {new: old for old, new in mapping.items()},
    )
    changed = [f".{old}" for old, new in names.items() if old != new]
    used = [part for part in wrappers if any(f".{part}." in name for name in changed)]
    return Selection(found, stored, tuple(used), tuple(renamed), tuple(sorted(outside)), (*ignored, *opened.entries))


def _cleaned(names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(name in the file -> name without wrappers, the wrappers taken out).

    A wrapper whose removal would make two names one is all that tells two copies apart: it stays.
    """
    for wrappers in (WRAPPERS, WRAPPERS[:-1], WRAPPERS[1:], ()):
        cleaned = {name: _clean(name, wrappers) for name in names}
        if len(set(cleaned.values())) == len(cleaned):
            break
    return cleaned, wrappers


def _clean(name: str, wrappers: tuple[str, ...]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _models(names: Iterable[str]) -> list[Found]:
    """Every model by its blocks, in the order of their prefixes."""
    everything, stems = set(names), dict[str, bool]()
    for name in sorted(everything):
        if match := BLOCK.search(name):
            stems.setdefault(name[: match.start(1)], match[3] is None)
    return [_found(stem, is_large, everything) for stem, is_large in stems.items()]


def _found(stem: str, is_large: bool, names: Collection[str]) -> Found:
    root = stem.removesuffix("backbone." if is_large else "xlstm_block_stack.")
    own = root != stem and (root == "" or root.endswith("."))
    if is_large:
        if own and stem + "embeddings.weight" in names:
            return Found("xlstm_hf", root)
        if own and root + "embedding.weight" in names:
            return Found("xlstm_large", root)
        return Found("xlstm_large_stack", stem)
    if own and {root + "token_embedding.weight", root + "lm_head.weight"} & set(names):
        return Found("xlstm_lm", root)
    return Found("xlstm_stack", stem)


def _choose(models: list[Found], prefix: str | None) -> Found:
    if prefix is None and len(models) == 1:
        return models[0]
    if prefix is None:
        raise CheckpointError(
            f"expected one model among the tensors, got models with the prefixes {_prefixes(models)}; name one with "
            "--prefix"
        )
    exact = [m for m in models if m.prefix == prefix]
    stack = [
        Found(STACK_OF[m.form], prefix)
        for m in models
        if m.form in LANGUAGE_MODELS and prefix == m.prefix + PARTS[m.form][0]
    ]
    chosen = exact or stack or [m for m in models if m.prefix.startswith(prefix)]
    if len(chosen) != 1:
        raise CheckpointError(
            f"expected --prefix to name one model among {_prefixes(models)}, got {shown(prefix)}; choose one of them"
        )
    return chosen[0]


def _prefixes(models: list[Found]) -> str:
    return ", ".join(f"'{escaped(m.prefix)}'" for m in models[:6]) + (" and more" if len(models) > 6 else "")


def _head(
    opened: Opened, found: Found, rivals: list[Found], inside: dict[str, str], outside: dict[str, str]
) -> list[tuple[str, str]]:
    """A language model's head in the module around it, as Hugging Face wrappers keep it: taken in under its own name."""
    if found.form not in LANGUAGE_MODELS or not found.prefix:
        return []
    parent = found.prefix[:-1].rpartition(".")[0]
    wanted = f"{parent}.lm_head.weight" if parent else "lm_head.weight"
    outer = next((old for old, new in outside.items() if new == wanted), None)
    if outer is None or any(m.form in LANGUAGE_MODELS and wanted == m.prefix + "lm_head.weight" for m in rivals):
        return []
    inner = next((old for old, new in inside.items() if new == found.prefix + "lm_head.weight"), None)
    if inner is not None:
        tensors = opened.tensors
        if inner in tensors and outer in tensors and Stored(tensors).equal(inner, outer):
            return []
        raise CheckpointError(
            f"expected one output head, got {listed([inner, outer])} with different numbers; save the model that is "
            "to be exported on its own"
        )
    del outside[outer]
    return [(outer, "lm_head.weight")]


def _refuse_unsupported(names: Mapping[str, str], models: list[Found]) -> None:
    for pattern, what in UNSUPPORTED.items():
        if any(re.search(pattern, name) for name in names):
            raise CheckpointError(f"expected one of {FAMILIES}, got {what}; not supported")
    if not models:
        raise CheckpointError(
            f"expected tensors of one of {FAMILIES}, got {listed(sorted(names)) or 'none'}; not an xLSTM checkpoint"
        )


def _refuse_halves(found: Found, names: Collection[str], prefix: str | None) -> None:
    """Blocks with only one end of a language model: whoever wants the stack of float vectors says so."""
    if prefix is not None:
        return
    stack = f"pass --prefix {escaped(found.prefix) or repr('')} for its stack of float vectors"
    if found.prefix + "embeddings.weight" in names:
        raise CheckpointError(
            "expected a language model with lm_head.weight, or a stack of blocks alone, got embeddings without a head, as "
            f"xLSTMModel has them; save the xLSTMForCausalLM that was trained, or {stack}"
        )
    root = found.prefix.removesuffix("backbone.")
    if root != found.prefix and root + "lm_head.weight" in names:
        raise CheckpointError(
            f"expected an embedding beside {escaped(root)}lm_head.weight, got none; export the complete checkpoint, or {stack}"
        )


def _refuse_classifier(found: Found, names: Mapping[str, str], inside: Mapping[str, str], prefix: str | None) -> None:
    """A language model's body with another head: tied, it would speak, and nobody trained it to."""
    if found.form not in LANGUAGE_MODELS or not any(CLASSIFIER.search(new) for new in names.values()):
        return
    if prefix is None or found.prefix + "lm_head.weight" not in inside.values():
        raise CheckpointError(
            f"expected one of {FAMILIES}, got a sequence classifier; not supported as a whole, so pass --prefix "
            f"{escaped(found.prefix + PARTS[found.form][0])} for its stack of float vectors"
        )


def _refuse_around(
    found: Found,
    rivals: list[Found],
    outside: Mapping[str, str],
    renamed: list[tuple[str, str]],
    prefix: str | None,
) -> None:
    """A language model is whole: what stands around it and is no copy and no loss takes part in what it says.

    A user who names the prefix has decided; but half of a head that was taken in is a wrong head.
    """
    if found.form not in LANGUAGE_MODELS:
        return
    copies = tuple(m.prefix for m in rivals if m.prefix)
    parts = sorted(old for old, new in outside.items() if not HARMLESS.fullmatch(new) and not new.startswith(copies))
    heads = tuple(outer.removesuffix("weight") for outer, _ in renamed)
    halves = [old for old in parts if old.startswith(heads)] if heads else []
    if halves or (parts and prefix is None):
        raise CheckpointError(
            f"expected a language model alone, got {listed(halves or parts)} around it, which may change what it says; "
            + (
                "not supported as a whole"
                if halves
                else f"pass --prefix {escaped(found.prefix + PARTS[found.form][0])} for its stack of float vectors, or "
                f"--prefix {escaped(found.prefix)} if the parts around it take no part in its outputs"
            )
        )
