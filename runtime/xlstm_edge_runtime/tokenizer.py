"""Text <-> token ids.

Two kinds behind one interface: raw bytes, and whatever the `tokenizers` library reads. Ids are those that `transformers`
gives for the same tokenizer.json: its post-processor's special tokens are added, its truncation and padding are not used
(trainers leave them in the file; no call of transformers applies them unless asked). `decode` has the streaming side.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from .decode import ByteStream, DecodeStream, WindowStream, reach
from .errors import BundleError, DependencyError, InputError
from .tokenizer_limits import check_growth

Kind = Literal["byte", "huggingface"]
BYTES = 256
LARGEST_ID = 1 << 32  # the library's ids are 32 bits wide


class Tokenizer(Protocol):
    """Text <-> ids."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    def added(self) -> Mapping[str, int]:
        """Tokens that are found in text before it is cut into others (special or not), and their ids."""

    @property
    def begins_texts(self) -> bool:
        """Whether the tokenizer itself puts a special token in front of a text."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; `special` False leaves out what the tokenizer puts around a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens and ids that the tokenizer does not know are left out."""

    def special_text(self, token: int) -> str:
        """The text of a special token, which `decode` leaves out; nothing for any other id."""

    def stream(self, prompt: Sequence[int] = ()) -> DecodeStream:
        """A fresh decoder for what follows these ids."""


class ByteTokenizer:
    """Id = byte of the UTF-8 text."""

    vocab_size = BYTES
    begins_texts = False

    @property
    def added(self) -> Mapping[str, int]:
        return {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Each byte."""
        del special  # there are none
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(_one_byte, ids)).decode("utf-8", errors="replace")

    def special_text(self, token: int) -> str:
        del token
        return ""

    def stream(self, prompt: Sequence[int] = ()) -> DecodeStream:
        """Holds back incomplete characters."""
        return ByteStream(_one_byte, prompt)


class HuggingFaceTokenizer:
    """Any tokenizer.json, through the `tokenizers` library (the extra `text`); BundleError if it cannot be read."""

    def __init__(self, document: Mapping[str, Any], name: str = "tokenizer.json") -> None:
        try:
            import tokenizers  # noqa: PLC0415  # an optional dependency
        except ModuleNotFoundError as error:
            if error.name != "tokenizers":
                raise
            raise DependencyError(
                "expected the package tokenizers for this bundle's text, got none; pip install 'xlstm-edge[text]'"
            ) from error
        self._name = name
        check_growth(document)
        decoder = document.get("decoder")
        self._bytewise = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
        self._byte_fallback = '"ByteFallback"' in json.dumps(decoder)
        self._reach = reach(decoder) if isinstance(decoder, dict) else 0
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
        except BaseException as error:  # what panics in Rust is no Exception
            _raise_broken(error, name, "to be a tokenizer")
        self._added = {token.content: index for index, token in added.items()}
        self._special = {token.content for token in added.values() if token.special}
        self._texts: dict[int, str] = {}

    @property
    def vocab_size(self) -> int:
        """With added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def own_size(self) -> int:
        """Without the tokens that were added to the trained vocabulary."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    @property
    def added(self) -> Mapping[str, int]:
        return self._added

    @cached_property
    def begins_texts(self) -> bool:
        """By a trial: the library marks what its post-processor added."""
        mask = self._encode("a", special=True).special_tokens_mask
        return bool(mask and mask[0])

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The library's ids; BundleError if it fails on this text."""
        return list(self._encode(text, special=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The library's text; the tokens' own text where it fails."""
        known = [token for token in ids if self._text_of(token) is not None]
        return self._decode(known)

    def special_text(self, token: int) -> str:
        text = self._token(token)
        return text if text is not None and text in self._special else ""

    def token_id(self, text: str) -> int | None:
        """The id of a token by its own text."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def stream(self, prompt: Sequence[int] = ()) -> DecodeStream:
        """Byte by byte where the decoder is, else through a window."""
        if self._bytewise:
            return ByteStream(self._bytes_of, prompt)
        return WindowStream(self._text_of, self._decode, prompt, byte_fallback=self._byte_fallback, reach=self._reach)

    def _encode(self, text: str, *, special: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except BaseException as error:  # what panics in Rust is no Exception
            _raise_broken(error, self._name, "to encode any text")

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:  # some decoders fail on nothing
            return ""
        try:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        except BaseException as error:
            if not _of_the_library(error):
                raise
            return "".join(self._text_of(token) or "" for token in ids)

    def _token(self, token: int) -> str | None:
        text = self._texts.get(token)
        if text is None and 0 <= token < LARGEST_ID:
            text = self._tokenizer.id_to_token(token)
            if text is not None:
                self._texts[token] = text
        return text

    def _text_of(self, token: int) -> str | None:
        """A token's own text; None if text leaves it out."""
        text = self._token(token)
        return None if text is None or text in self._special else text

    def _bytes_of(self, token: int) -> bytes:
        """As the library's ByteLevel decoder: each character a byte, or the token's own UTF-8 if one of them is none."""
        text = self._text_of(token)
        if text is None:
            return b""
        try:
            return bytes(BYTE_OF[character] for character in text)
        except KeyError:
            return text.encode("utf-8")


def encode_text(
    tokenizer: Tokenizer, text: str, vocab_size: int, *, bos: int | None = None, start: bool = True
) -> list[int]:
    """Ids for a model: the tokenizer's, with `bos` in front where the tokenizer puts nothing there itself.

    `start` False is for text in the middle of a stream: nothing is added. InputError for an id the model does not have.
    """
    ids = tokenizer.encode(text, special=start)
    if start and bos is not None and ids[:1] != [bos] and not tokenizer.begins_texts:
        ids = [bos, *ids]
    if ids and max(ids) >= vocab_size:
        outside = next(token for token in ids if token >= vocab_size)
        raise InputError(
            f"expected text of the model's {vocab_size} tokens, got the tokenizer's id {outside}, which the model does "
            "not have; leave that token out"
        )
    return ids


def load_tokenizer(kind: str, path: Path | None) -> Tokenizer:
    """Make the tokenizer of this kind; BundleError for a damaged file, DependencyError without the library."""
    if kind == "byte":
        return ByteTokenizer()
    if path is None or kind != "huggingface":
        raise InputError(f"expected a tokenizer of kind byte or huggingface with its file, got {kind[:40]!r}")
    return HuggingFaceTokenizer(read_document(path), path.name)


def read_document(path: Path) -> dict[str, Any]:
    """A tokenizer.json; BundleError if it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"expected {path.name} to be JSON, got something else; copy it again") from error
    if not isinstance(document, dict):
        raise BundleError(f"expected {path.name} to hold an object, got {type(document).__name__}; copy it again")
    if not isinstance(document.get("model"), dict):
        raise BundleError(f"expected {path.name} with a model, got none; use the tokenizer of the training")
    return document


def _one_byte(token: int) -> bytes:
    return bytes([token]) if 0 <= token < BYTES else b""


def _raise_broken(error: BaseException, name: str, wanted: str) -> NoReturn:
    if not _of_the_library(error):
        raise error
    reason = ascii(" ".join(str(error).split())[:120])
    raise BundleError(f"expected {name} {wanted}, got {reason}; use the one of the training") from error


def _of_the_library(error: BaseException) -> bool:
    """Its errors are bare Exceptions, and panics of its Rust code, whose class derives from BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a character: printable ones of Latin-1 as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_characters()
