"""Tokenizer, special tokens and sampling defaults of a checkpoint, from the files that trainers leave beside it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import BundleError, CheckpointError, InputError, shown, shown_path
from xlstm_edge_runtime.layout import TOKENIZER
from xlstm_edge_runtime.manifest import SpecialTokens, TokenizerInfo
from xlstm_edge_runtime.reading import read_bytes
from xlstm_edge_runtime.sampling import LARGEST_WINDOW, SamplingOptions
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, encode_text

from .checkpoints import Checkpoint
from .convert_tokenizer import as_transformers_reads, convert_tokenizer, find, not_applied
from .named_tokens import with_named_tokens

SAMPLING_KEYS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
SETTINGS = ("generation_config.json", "config.json", "tokenizer_config.json", "special_tokens_map.json")
OFF = {("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("repetition_penalty", 1.0)}  # nothing to write down
BYTE_VOCABULARY = 256
ASSUMED = "GPTNeoXTokenizer"  # transformers' own choice for this model type
LARGEST_TOKENIZER, LARGEST_SETTINGS = 128 << 20, 16 << 20

Note = Callable[[str], None]


def no_note(_line: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class TextAssets:
    """What a bundle needs to turn text into ids and back; `document` is the content of its tokenizer.json."""

    info: TokenizerInfo
    document: bytes | None = None
    special: SpecialTokens = field(default_factory=SpecialTokens)
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Ready to use; None where there is no text."""
        if self.document is not None:
            return HuggingFaceTokenizer(json.loads(self.document))
        return ByteTokenizer() if self.info.kind == "byte" else None

    def encode(self, text: str, vocab_size: int) -> list[int]:
        """The ids that the exported model will be given for a text."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InputError("expected a checkpoint with a tokenizer, got one without; write ids")
        return encode_text(tokenizer, text, vocab_size, bos=self.special.bos if self.special.add_bos else None)


def read_text_assets(checkpoint: Checkpoint, choice: str | None = None, note: Note = no_note) -> TextAssets:
    """Collect it; `note` is told in a line if the bundle has no text, or of what was converted.

    `choice` is "byte" (ids are the bytes of UTF-8), "none", a tokenizer.json, or None: what the checkpoint has beside it.
    CheckpointError for a tokenizer that does not fit the model.
    """
    vocab = checkpoint.spec.vocab_size
    if vocab is None:
        if choice not in (None, "none"):
            raise InputError("expected no tokenizer for a stack of float vectors, got one; leave --tokenizer out")
        return TextAssets(TokenizerInfo(kind="none"))
    settings = [_read(checkpoint.folder, name) for name in SETTINGS]
    sampling = _sampling(settings[0])
    if choice == "byte":
        if vocab < BYTE_VOCABULARY:
            raise InputError(f"expected a vocabulary of {BYTE_VOCABULARY} or more for bytes, got {vocab}; use another")
        return TextAssets(TokenizerInfo(kind="byte"), None, _special(settings, None, vocab), sampling)
    plain = settings[1].get("model_type") == "xlstm" and not settings[1].get("tokenizer_class")
    assumed = ASSUMED if plain and "auto_map" not in settings[1] else None
    document = None if choice == "none" else _document(checkpoint.folder, choice, vocab, note, assumed)
    if document is None:
        return TextAssets(TokenizerInfo(kind="none"), None, _special(settings, None, vocab), sampling)
    tokenizer = _checked(document, vocab)
    if choice is None:
        beside = [settings[2], settings[3], _read(checkpoint.folder, "added_tokens.json")]
        named, added = with_named_tokens(document, beside)
        document, line = as_transformers_reads(document, named, checkpoint.folder, assumed=assumed)
        if added and document == named:
            note(f"tokens that only the files beside {TOKENIZER} name, added to it: {_listed(added)}")
        for text in ([line] if line else []) + list(not_applied(settings[2], document)):
            note(text)
        tokenizer = _checked(document, vocab)
    return TextAssets(
        TokenizerInfo(kind="huggingface", file=TOKENIZER), document, _special(settings, tokenizer, vocab), sampling
    )


def _document(folder: Path, choice: str | None, vocab: int, note: Note, assumed: str | None) -> bytes | None:
    """The content of tokenizer.json: given, found or converted; None with a note if there is none."""
    file = Path(choice) if choice is not None else find(folder, TOKENIZER)
    if file is not None:
        try:
            return read_bytes(file, LARGEST_TOKENIZER)
        except OSError as error:
            raise InputError(
                f"expected a tokenizer.json at {shown_path(file)}, got {error.strerror or error}; check the path"
            ) from error
    document, line = convert_tokenizer(folder, assumed)
    if document is None and line is None:
        line = "no tokenizer beside the checkpoint: the bundle has no text, it takes and gives token ids"
        if vocab == BYTE_VOCABULARY:
            line += " (--tokenizer byte if they are bytes)"
    if line is not None:
        note(line)
    return document


def _checked(document: bytes, vocab: int) -> HuggingFaceTokenizer:
    """Added tokens may lie beyond the model's vocabulary (they are refused when they come), trained ones may not."""
    try:
        value = json.loads(document)
        if not isinstance(value, dict):
            raise ValueError("no object")
        tokenizer = HuggingFaceTokenizer(value)
    except (ValueError, RecursionError, BundleError) as error:
        reason = str(error) if isinstance(error, BundleError) else "got something else"
        raise CheckpointError(
            f"expected {TOKENIZER} to be a tokenizer, got other JSON ({ascii(reason)[1:121]}); use the model's own"
        ) from error
    if not tokenizer.vocab_size:
        raise CheckpointError(f"expected tokens in {TOKENIZER}, got none; use the model's own")
    if tokenizer.own_size > vocab:
        raise CheckpointError(
            f"expected a tokenizer of at most {vocab} tokens, got {tokenizer.own_size} in {TOKENIZER}; use the model's own"
        )
    return tokenizer


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(shown(name) for name in names[:6]) + rest


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = find(folder, name)
    if path is None:
        return {}
    try:
        value = json.loads(read_bytes(path, LARGEST_SETTINGS))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"expected {name} to be JSON, got something else; repair it") from error
    return value if isinstance(value, dict) else {}


def _special(settings: list[dict[str, Any]], tokenizer: HuggingFaceTokenizer | None, vocab: int) -> SpecialTokens:
    """Every eos that anything names stops: a config's number may be a default that nobody looked at.

    A bos is inserted only where the model says so (`force_bos_token_insert`); what a tokenizer puts in front of a text is
    its post-processor's business, as in transformers, which ignores `add_bos_token` beside a tokenizer.json.
    """
    bos, pad, eos = (_tokens(settings, kind, tokenizer, vocab) for kind in ("bos", "pad", "eos"))
    add_bos = any(s.get("force_bos_token_insert") is True for s in settings)
    return SpecialTokens(
        bos=bos[0] if bos else None,
        pad=pad[0] if pad else None,
        stop=tuple(eos),
        add_bos=add_bos and bool(bos),
    )


def _tokens(settings: list[dict[str, Any]], kind: str, tokenizer: HuggingFaceTokenizer | None, vocab: int) -> list[int]:
    """All ids, numbers before names; one outside the vocabulary is a default of another model."""
    found: list[int] = []
    for config in settings:
        value = config.get(f"{kind}_token_id")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                found.append(number)
    for config in settings if tokenizer is not None else ():
        token = config.get(f"{kind}_token")
        name = token.get("content") if isinstance(token, dict) else token
        index = tokenizer.token_id(name) if isinstance(name, str) and tokenizer is not None else None
        if index is not None:
            found.append(index)
    return [token for token in dict.fromkeys(found) if 0 <= token < vocab]


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """What `generate` of transformers would do with this file; what it leaves out there is a default, not off.

    A file that samples and names no temperature means 1, no top_k 50; one that does not sample is greedy, and only the
    repetition penalty counts.
    """
    samples = generation.get("do_sample") is True
    keys = SAMPLING_KEYS if samples else {"repetition_penalty": float}
    values: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if samples else {}
    for key, kind in keys.items():
        value = generation.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(
                f"expected {key} in generation_config.json as a number, got {shown(value)}; repair the file"
            )
        values[key] = kind(value)
    values = {key: value for key, value in values.items() if (key, value) not in OFF}
    if "repetition_penalty" in values:
        values["penalty_window"] = LARGEST_WINDOW  # there it sees the whole text
    try:
        SamplingOptions.from_mapping(values)
    except InputError as error:
        raise CheckpointError(f"in generation_config.json: {error}") from error
    return values
