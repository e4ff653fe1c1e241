"""Tokenizers in other forms than tokenizer.json, made into one by the libraries that know them.

vocab.json with merges.txt is a byte-level BPE as GPT-2's (or what tokenizer_config.json names), vocab.txt a WordPiece as
BERT's; tokenizer.model, spiece.model and sentencepiece.bpe.model are SentencePiece. All are read by transformers, whose ids
the result has; without it, the first by `tokenizers` alone.
"""

import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import shown

TOKENIZER = "tokenizer.json"
PAIR = ("vocab.json", "merges.txt")
PIECES = "tokenizer.model"
SETTINGS = "tokenizer_config.json"
BESIDE = (SETTINGS, "special_tokens_map.json", "added_tokens.json")
FORMS: dict[tuple[str, ...], str] = {  # files of a form: the class that reads them if no other is named
    PAIR: "GPT2Tokenizer",
    (PIECES,): "PreTrainedTokenizerFast",
    ("spiece.model",): "PreTrainedTokenizerFast",
    ("sentencepiece.bpe.model",): "PreTrainedTokenizerFast",
    ("vocab.txt",): "BertTokenizer",
}
UNREAD = ("vocab.json", "merges.txt", "tekken.json", "*.tiktoken", "*.model", "*.vocab", "*.bpe")
LARGEST = 256 << 20
KEPT = re.compile(  # settings that say how text is read; others could name code or files
    r"(bos|eos|pad|unk|sep|cls|mask)_token|(additional|extra)_special_tokens|added_tokens_decoder|add_\w+|do_lower_case|"
    r"strip_accents|tokenize_chinese_chars|keep_accents|remove_space|legacy|trim_offsets|extra_ids|split_special_tokens"
)
PROBES = (
    "the Cat sat", " on  the mat. ", "naïve café e\u0301té", "你好 世界, नमस्ते!", "it's Don't.\n\tdef f(x): 3.14 <s> x", "x",
)  # fmt: skip
CLASSES = (
    "GPT2Tokenizer", "BertTokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "T5Tokenizer", "Qwen2Tokenizer",
    "RobertaTokenizer", "GPTNeoXTokenizer", "GemmaTokenizer", "XLMRobertaTokenizer", "AlbertTokenizer", "BartTokenizer",
    "CodeGenTokenizer", "BloomTokenizer", "CamembertTokenizer", "MBartTokenizer", "PegasusTokenizer", "BigBirdTokenizer",
    "CohereTokenizer",
)  # fmt: skip
GENERIC = ("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend")  # no class of its own


def find(folder: Path, name: str) -> Path | None:
    """Whatever has that name in the folder, in its `tokenizer` or, for a `checkpoint-*` of a run, in the one above."""
    places = [folder, folder / "tokenizer"]
    if folder.name.startswith("checkpoint-"):
        places += [folder.parent, folder.parent / "tokenizer"]
    return next((place / name for place in places if os.path.lexists(place / name)), None)


def convert_tokenizer(folder: Path) -> tuple[bytes | None, str | None]:
    """(content of a tokenizer.json, None), (None, why there is none in a line), or (None, None): nothing to convert."""
    names = next((names for names in FORMS if all(find(folder, name) for name in names)), None)
    without = "the bundle has no text"
    if names is None:
        unread = sorted(path.name for pattern in UNREAD for path in folder.glob(pattern))
        if not unread:
            return None, None
        return (
            None,
            f"{shown(unread[0])} is no whole tokenizer of a form that is read; save it as {TOKENIZER}; {without}",
        )
    what, pieces = " and ".join(names), names[0].endswith(".model")
    paths = [path for name in (*names, *BESIDE) if (path := find(folder, name)) is not None]
    if not all(path.is_file() and path.stat().st_size <= LARGEST for path in paths):  # a pipe or device has no end
        return None, f"{what}: no regular files of a tokenizer's size; {without}"
    try:
        try:
            if pieces and importlib.util.find_spec("sentencepiece") is None:
                raise ModuleNotFoundError("no sentencepiece", name="sentencepiece")  # transformers would guess a format
            return _by_transformers(paths, FORMS[names]), None
        except ModuleNotFoundError:
            if names != PAIR:
                raise
            return _by_tokenizers(*paths[:2]), None
    except ImportError as error:
        reason = (
            f"needs a package that is missing ({error.name or _line(error)}); pip install transformers sentencepiece"
        )
    except Exception as error:  # foreign libraries and files: nothing less general is to be expected of them
        reason = f"not readable ({type(error).__name__}: {_line(error)})"
    return None, f"{what}: {reason}; {without}"


def as_its_class_reads(document: bytes, folder: Path) -> tuple[bytes, str | None]:
    """A tokenizer.json as the class that tokenizer_config.json names reads it; and what a user should know of that.

    Such a class builds parts of the tokenizer itself, from its settings. A file that was saved by it says the same; where
    ids of a few texts tell another story, those of transformers win, and the note says how to have the file's own.
    """
    paths = [path for name in BESIDE if (path := find(folder, name)) is not None]
    name = _class_name(_settings(paths))
    if find(folder, TOKENIZER) is None:
        return document, None  # just converted
    if name is None or name not in CLASSES or (name == "LlamaTokenizer" and b'"ByteLevel"' in document):
        return document, None  # of Llama's class over ByteLevel, transformers says that the file is right
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / TOKENIZER
            file.write_bytes(document)
            theirs = _by_transformers([file, *paths], name)
    except ImportError:
        return (
            document,
            f"{TOKENIZER} is taken as it stands: without transformers, what {name} makes of it is not known",
        )
    except BaseException as error:  # foreign libraries and files; what panics in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        return document, f"{TOKENIZER} is taken as it stands: transformers' {name} fails on it ({_line(error)})"
    text = _first_difference(document, theirs)
    if text is None:
        return document, None
    return theirs, (
        f"transformers' {name} gives other ids than {TOKENIZER} by itself, as for {text!a}: the bundle has those of "
        f"transformers; --tokenizer PATH takes the file as it stands"
    )


def not_applied(settings: dict[str, Any], document: bytes) -> Iterator[str]:
    """Settings of a tokenizer_config.json that change text in transformers but are no part of a tokenizer.json."""
    if settings.get("split_special_tokens") is True:
        yield "split_special_tokens is not applied: special tokens in a text are read as such"
    if settings.get("clean_up_tokenization_spaces") is True and json.loads(document)["model"].get("type") != "BPE":
        yield "clean_up_tokenization_spaces is not applied: spaces before punctuation stay"


def _first_difference(ours: bytes, theirs: bytes) -> str | None:
    """A text that two tokenizers read or write differently."""
    from tokenizers import Tokenizer  # noqa: PLC0415  # optional

    left, right = (Tokenizer.from_str(document.decode("utf-8")) for document in (ours, theirs))
    for tokenizer in (left, right):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    for text in PROBES:
        ids = left.encode(text).ids
        if ids != right.encode(text).ids or left.decode(ids) != right.decode(ids):
            return text
    return None


def _by_transformers(paths: list[Path], default: str) -> bytes:
    """Only the tokenizer's own files: with the model's config, another class might be guessed."""
    import transformers  # noqa: PLC0415  # optional, and slow to import

    transformers.logging.set_verbosity(logging.ERROR)
    settings = _settings(paths)
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            if path.name != SETTINGS:
                shutil.copyfile(path, Path(folder) / path.name)
            if path.name.endswith(".model"):  # by whichever name the class looks for it
                for name in (names[0] for names in FORMS if names[0].endswith(".model")):
                    shutil.copyfile(path, Path(folder) / name)
        kept = {key: value for key, value in settings.items() if KEPT.fullmatch(key)}
        (Path(folder) / SETTINGS).write_text(json.dumps(kept), encoding="utf-8")
        kind = getattr(transformers, _class(_class_name(settings), default))
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def _settings(paths: list[Path]) -> dict[str, Any]:
    for path in paths:
        if path.name == SETTINGS:
            value = json.loads(path.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else {}
    return {}


def _class_name(settings: dict[str, Any]) -> str | None:
    """The class that a config names, without the marks of older versions; None where that is no class of its own."""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    return None if name in ("", *GENERIC) else name


def _class(name: str | None, default: str) -> str:
    """The named class if it is one of `CLASSES`: a file does not choose what runs."""
    if name is None or name == default:
        return default
    if name not in CLASSES:
        raise ValueError(f"the tokenizer class {name[:60]}, which is none of {', '.join(CLASSES)}")
    return name


def _by_tokenizers(vocabulary: Path, merges: Path) -> bytes:
    """As GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  # optional

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str()).encode()


def _line(error: BaseException) -> str:
    return ascii(" ".join(str(error).split())[:100])[1:-1]
