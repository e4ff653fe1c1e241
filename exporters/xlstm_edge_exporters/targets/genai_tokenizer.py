"""Which tokenizers onnxruntime-genai reads as they are meant, and what it does otherwise.

It says nothing of what it leaves out of a tokenizer.json, and gives -1 for what it does not know. So it is let read those
forms alone for which it was held to the library `tokenizers`: byte-level BPE with GPT-2's pattern (GPT-2, GPT-NeoX).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xlstm_edge_runtime.manifest import Manifest

Document = Mapping[str, Any]
AS_IT_IS = {"add_prefix_space": False, "use_regex": True}
FLAGS = ("lstrip", "single_word")


def not_read(document: bytes) -> str | None:
    """Why genai would give other ids for a text than this tokenizer.json does; None where it gives the same."""
    content = json.loads(document)
    return next((reason for reason, reads in RULES.items() if not reads(content)), None)


def differences(manifest: Manifest, document: bytes | None) -> Iterator[str]:
    """What an app must know that genai does in another way; `document` is the tokenizer that it reads."""
    content = {} if document is None else json.loads(document)
    if content.get("normalizer"):
        yield "onnxruntime-genai's tokenizer leaves NFC out: compose combining characters before it"
    if document is not None and (content.get("post_processor") or {}).get("type") not in (None, "ByteLevel"):
        yield "onnxruntime-genai's tokenizer adds no special tokens: put them around the prompt's ids"
    elif document is not None and manifest.special_tokens.add_bos:
        yield "onnxruntime-genai's tokenizer adds no bos token: put it before the prompt's ids"
    if manifest.sampling.get("min_p"):
        yield "onnxruntime-genai has no min_p: its sampling is without"


def _is_plain_bpe(document: Document) -> bool:
    """Without marks and bytes of Llama's, and without chance."""
    model = document["model"]
    marks = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return model.get("type") == "BPE" and not any(model.get(mark) for mark in marks)


def _cuts_as_gpt2(document: Document) -> bool:
    before = document.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    return (
        len(parts) == 1 and parts[0].get("type") == "ByteLevel" and {**AS_IT_IS, **parts[0]} == {**parts[0], **AS_IT_IS}
    )


def _joins_bytes(document: Document) -> bool:
    return (document.get("decoder") or {}).get("type") == "ByteLevel"


def _leaves_text(document: Document) -> bool:
    """NFC, which most texts are in already, is said instead."""
    return (document.get("normalizer") or {"type": "NFC"}) == {"type": "NFC"}


def _has_plain_tokens(document: Document) -> bool:
    return not any(token.get(flag) for token in document.get("added_tokens") or [] for flag in FLAGS)


RULES: dict[str, Callable[[Document], bool]] = {
    "it reads byte-level BPE alone": _is_plain_bpe,
    "it cuts text into words in another way": _cuts_as_gpt2,
    "it puts text together in another way": _joins_bytes,
    "it normalizes no text": _leaves_text,
    "it finds added tokens in other places": _has_plain_tokens,
}
