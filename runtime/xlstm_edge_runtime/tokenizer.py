"""Text <-> token ids, and ids -> text as they stream.

Three kinds behind one interface: raw bytes, words split at whitespace (read here, without any library), and whatever
the `tokenizers` library reads. A decode stream returns text only once it is certain: half of a UTF-8 character, or a
token whose leading space depends on its neighbour, waits for the next token.
"""

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import BundleError, DependencyError, InputError

Kind = Literal["byte", "whitespace", "huggingface"]
PRE_TOKENIZERS = {"Whitespace": re.compile(r"\w+|[^\w\s]+"), "WhitespaceSplit": re.compile(r"\S+")}


class DecodeStream(Protocol):
    """Ids in, text out; made by `Tokenizer.stream`."""

    def push(self, token: int) -> str:
        """The text that this token makes certain, possibly none."""

    def flush(self) -> str:
        """What is still held back; call once, at the end."""


class Tokenizer(Protocol):
    """Text <-> ids."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""

    def stream(self) -> DecodeStream:
        """A fresh decoder for one generation."""


class ByteTokenizer:
    """Id = byte of the UTF-8 text."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Each byte."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Invalid UTF-8 becomes U+FFFD."""
        return bytes(ids).decode("utf-8", errors="replace")

    def stream(self) -> "ByteStream":
        """Holds back incomplete characters."""
        return ByteStream()


class ByteStream:
    """Incremental UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text of the characters that are complete now."""
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        """An incomplete character as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WhitespaceTokenizer:
    """A word-level vocabulary over words split at whitespace, as `tokenizers` writes it to tokenizer.json."""

    def __init__(self, document: dict[str, Any]) -> None:
        vocabulary: dict[str, int] = document["model"]["vocab"]
        added = document.get("added_tokens") or []
        self._special = {token["id"] for token in added if token.get("special")}
        self._ids = vocabulary | {token["content"]: token["id"] for token in added}
        self._words: dict[int, str] = {index: word for word, index in self._ids.items()}
        self._unknown = self._ids.get(document["model"].get("unk_token"))
        self._split = PRE_TOKENIZERS[document["pre_tokenizer"]["type"]]
        contents = sorted((re.escape(token["content"]) for token in added), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(contents)})") if contents else None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._words)

    def encode(self, text: str) -> list[int]:
        """Unknown words become the unknown token, or vanish where there is none."""
        ids = []
        for index, part in enumerate(self._added.split(text) if self._added else [text]):
            for word in [part] if index % 2 else self._split.findall(part):
                found = self._ids.get(word, self._unknown)
                if found is not None:
                    ids.append(found)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Words joined by one space, special tokens left out."""
        return " ".join(self._words[i] for i in ids if i in self._words and i not in self._special)

    def stream(self) -> "WhitespaceStream":
        """A space before every word but the first."""
        return WhitespaceStream(self)


class WhitespaceStream:
    """Nothing is ever held back."""

    def __init__(self, tokenizer: WhitespaceTokenizer) -> None:
        self._tokenizer, self._first = tokenizer, True

    def push(self, token: int) -> str:
        """The word, spaced."""
        word = self._tokenizer.decode([token])
        if not word:
            return ""
        space, self._first = "" if self._first else " ", False
        return space + word

    def flush(self) -> str:
        """Nothing."""
        return ""


class HuggingFaceTokenizer:
    """Any tokenizer.json, through the `tokenizers` library (the extra `text`)."""

    def __init__(self, text: str) -> None:
        try:
            import tokenizers  # noqa: PLC0415  # an optional dependency
        except ModuleNotFoundError as error:
            if error.name != "tokenizers":
                raise
            raise DependencyError(
                "expected the package tokenizers for this bundle's text, came none; pip install 'xlstm-edge[text]'"
            ) from error
        self._library = tokenizers
        self._tokenizer = tokenizers.Tokenizer.from_str(text)

    @property
    def vocab_size(self) -> int:
        """With added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """No special tokens added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> "HuggingFaceStream":
        """Exact UTF-8 across tokens."""
        return HuggingFaceStream(self._library, self._tokenizer)


class HuggingFaceStream:
    """The library's own decode stream, plus a flush, which it lacks: pending ids are kept until they make text."""

    def __init__(self, library: Any, tokenizer: Any) -> None:
        self._stream, self._tokenizer = library.decoders.DecodeStream(skip_special_tokens=True), tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """None from the library means: not certain yet."""
        piece = self._stream.step(self._tokenizer, token)
        if piece is None:
            self._pending.append(token)
            return ""
        self._pending.clear()
        return str(piece)

    def flush(self) -> str:
        """Bytes that never became a character, as U+FFFD."""
        pending, self._pending = self._pending, []
        return str(self._tokenizer.decode(pending, skip_special_tokens=True)) if pending else ""


def kind_of(path: Path) -> Literal["whitespace", "huggingface"]:
    """Whether a tokenizer.json is simple enough to be read without the library; BundleError if it is none."""
    document = _read(path)
    model, split = document.get("model"), document.get("pre_tokenizer")
    if not isinstance(model, dict):
        raise BundleError(f"expected {path.name} with a model, came none; use the tokenizer of the training")
    simple = (
        model.get("type") == "WordLevel"
        and isinstance(split, dict)
        and split.get("type") in PRE_TOKENIZERS
        and not any(document.get(key) for key in ("normalizer", "decoder"))
        and not any(t.get(k) for t in document.get("added_tokens") or [] for k in ("lstrip", "rstrip", "single_word"))
    )
    return "whitespace" if simple else "huggingface"


def load_tokenizer(kind: str, path: Path | None) -> Tokenizer:
    """Make the tokenizer of this kind; BundleError for a damaged file, DependencyError without the library."""
    if kind == "byte":
        return ByteTokenizer()
    if path is None or kind not in ("whitespace", "huggingface"):
        raise InputError(f"expected a tokenizer of kind byte, whitespace or huggingface with its file, came {kind!r}")
    document = _read(path)
    try:
        return WhitespaceTokenizer(document) if kind == "whitespace" else HuggingFaceTokenizer(json.dumps(document))
    except DependencyError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        reason = " ".join(str(error).split())[:120]
        raise BundleError(
            f"expected {path.name} to be a tokenizer, came: {reason}; use the one of the training"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"expected {path.name} to be JSON, came something else; copy it again") from error
    if not isinstance(document, dict):
        raise BundleError(f"expected {path.name} to hold an object, came {type(document).__name__}; copy it again")
    return document
