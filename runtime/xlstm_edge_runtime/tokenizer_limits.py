"""How much longer a tokenizer.json may make a text: a small file must not turn a prompt into gigabytes.

The library applies what the file says without a bound. Here the steps that lengthen a text are walked and multiplied out;
tokenizers that people use come to 20 or so, a file made to fill memory to millions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import BundleError

MOST_GROWTH = 1000.0  # times as many characters
MOST_ADDED = 10_000  # characters or ids beside those of the text
LONGEST_MARK = 256  # characters of a prefix or suffix that a model adds to each piece
LONGEST_WORD = 100_000  # characters that WordPiece tries as one word
MARKS = ("continuing_subword_prefix", "end_of_word_suffix", "unk_token")
SEQUENCES = ("normalizers", "decoders", "pretokenizers", "processors")


def check_growth(document: Mapping[str, Any]) -> None:
    """BundleError for a tokenizer.json that could make a text, or a text's ids, very much longer."""
    for section in ("normalizer", "decoder"):
        scale, added = 1.0, 0.0
        for step in steps(document.get(section)):
            factor, more = _growth(step)
            scale, added = scale * factor, added * factor + more
            if scale > MOST_GROWTH or added > MOST_ADDED:
                raise _refused(f"a {section} that makes texts at most {MOST_GROWTH:.0f} times as long")
    if sum(map(_template_ids, steps(document.get("post_processor")))) > MOST_ADDED:
        raise _refused(f"a post_processor of at most {MOST_ADDED} ids")
    model = document.get("model")
    if not isinstance(model, dict):
        return
    if any(isinstance(model.get(key), str) and len(model[key]) > LONGEST_MARK for key in MARKS):
        raise _refused(f"marks of at most {LONGEST_MARK} characters in its model")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise _refused(f"words of at most {LONGEST_WORD} characters")


def steps(section: object) -> Iterator[Mapping[str, Any]]:
    """The innermost steps of a section of a tokenizer.json, sequences of sequences included."""
    waiting = [section]
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, dict):
            continue
        inner = [part[key] for key in SEQUENCES if isinstance(part.get(key), list)]
        waiting[:0] = [step for sequence in inner for step in sequence]
        if not inner:
            yield part


def replaced_string(step: Mapping[str, Any]) -> str:
    """The string that a Replace looks for; nothing where it looks for an expression."""
    pattern = step.get("pattern")
    string = pattern.get("String") if isinstance(pattern, dict) else None
    return string if isinstance(string, str) else ""


def _growth(step: Mapping[str, Any]) -> tuple[float, float]:
    """(how many times as long, how many characters more)."""
    content = step.get("content")
    if step.get("type") == "Replace" and isinstance(content, str):
        if string := replaced_string(step):
            return max(1.0, len(content) / len(string)), 0.0
        return 1.0 + len(content), float(len(content))  # an expression may match nothing, before every character
    if step.get("type") == "Prepend" and isinstance(step.get("prepend"), str):
        return 1.0, float(len(step["prepend"]))
    return 1.0, 0.0


def _template_ids(step: Mapping[str, Any]) -> int:
    """Ids that a template puts around a text."""
    named, single = step.get("special_tokens"), step.get("single")
    if not isinstance(named, dict) or not isinstance(single, list):
        return 0
    counts = {name: len(token.get("ids") or ()) for name, token in named.items() if isinstance(token, dict)}
    words = [part.get("SpecialToken") for part in single if isinstance(part, dict)]
    return sum(counts.get(str(word.get("id")), 0) for word in words if isinstance(word, dict))


def _refused(wanted: str) -> BundleError:
    return BundleError(f"expected a tokenizer with {wanted}, got one with more; do not trust this bundle")
