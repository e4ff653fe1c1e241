"""Tokenizer, special tokens and sampling defaults of a checkpoint, from the files that trainers leave beside it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError, InputError
from xlstm_edge_runtime.manifest import SpecialTokens, TokenizerInfo
from xlstm_edge_runtime.sampling import SamplingOptions
from xlstm_edge_runtime.tokenizer import kind_of, load_tokenizer

from .checkpoints import Checkpoint

TOKENIZER = "tokenizer.json"
SAMPLING_KEYS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
BYTE_VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class TextSide:
    """What a bundle needs to turn text into ids and back; `file` is the tokenizer to copy."""

    info: TokenizerInfo
    file: Path | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)
    sampling: dict[str, Any] = field(default_factory=dict)


def text_side(checkpoint: Checkpoint) -> TextSide:
    """Collect it; CheckpointError for a tokenizer that does not fit the model."""
    vocab = checkpoint.spec.vocab_size
    if vocab is None:
        return TextSide(TokenizerInfo(kind="none"))
    file = _find(checkpoint.folder, TOKENIZER)
    settings = [
        _read(checkpoint.folder, name) for name in ("generation_config.json", "config.json", "tokenizer_config.json")
    ]
    settings.append(_read(checkpoint.folder, "special_tokens_map.json"))
    if file is None:
        kind = "byte" if vocab == BYTE_VOCABULARY else "none"
        return TextSide(TokenizerInfo(kind=kind), None, _special(settings, {}, vocab), _sampling(settings[0]))  # type: ignore[arg-type]
    try:
        kind, ids = kind_of(file), _token_ids(file)
        size = load_tokenizer(kind, file).vocab_size
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected {file.name} to be a tokenizer, came other JSON; use the model's own"
        ) from error
    if size > vocab:
        raise CheckpointError(
            f"expected a tokenizer of at most {vocab} tokens, came {size} in {file.name}; use the model's own"
        )
    special = _special(settings, ids, vocab)
    return TextSide(TokenizerInfo(kind=kind, file=TOKENIZER), file, special, _sampling(settings[0]))


def _find(folder: Path, name: str) -> Path | None:
    """In the checkpoint's folder or, for a `checkpoint-*-last` folder of a training run, the one above."""
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = _find(folder, name)
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"expected {name} to be JSON, came something else; repair or remove it") from error
    return value if isinstance(value, dict) else {}


def _token_ids(file: Path) -> dict[str, int]:
    """Token text -> id, from the vocabulary and the added tokens."""
    document = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = document.get("model", {}).get("vocab", {})
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}
    return ids | {token["content"]: token["id"] for token in document.get("added_tokens", [])}


def _special(settings: list[dict[str, Any]], ids: dict[str, int], vocab: int) -> SpecialTokens:
    found = {kind: _token(settings, kind, ids, vocab) for kind in ("bos", "pad", "eos")}
    bos = found["bos"][0] if found["bos"] else None
    add_bos = any(s.get("force_bos_token_insert") is True or s.get("add_bos_token") is True for s in settings)
    return SpecialTokens(
        bos=bos,
        pad=found["pad"][0] if found["pad"] else None,
        stop=tuple(found["eos"]),
        add_bos=add_bos and bos is not None,
    )


def _token(settings: list[dict[str, Any]], kind: str, ids: dict[str, int], vocab: int) -> list[int]:
    """Ids given as numbers win over names; a number outside the vocabulary is a default of another model."""
    for config in settings:
        value = config.get(f"{kind}_token_id")
        numbers = value if isinstance(value, list) else [value]
        if numbers := [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < vocab]:
            return numbers
    for config in settings:
        token = config.get(f"{kind}_token")
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str) and name in ids:
            return [ids[name]]
    return []


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    if generation.get("do_sample") is not True:
        return {}
    values = {
        key: kind(generation[key])
        for key, kind in SAMPLING_KEYS.items()
        if isinstance(generation.get(key), (int, float)) and math.isfinite(generation[key])
    }
    try:
        SamplingOptions.from_mapping(values)
    except InputError as error:
        raise CheckpointError(f"in generation_config.json: {error}") from error
    return values
