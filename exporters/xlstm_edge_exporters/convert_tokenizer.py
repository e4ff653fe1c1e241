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
from xlstm_edge_runtime.layout import TOKENIZER

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
    "☃ ʘ\U0001f600",
)  # fmt: skip
MOST_PROBES = 256
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


def convert_tokenizer(folder: Path, assumed: str | None = None) -> tuple[bytes | None, str | None]:
    """(content of a tokenizer.json, None), (None, why there is none in a line), or (None, None): nothing to convert.

    `assumed` is the class of a vocab.json with merges.txt where no file names one.
    """
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
    default = assumed if names == PAIR and assumed is not None else FORMS[names]
    paths = [path for name in (*names, *BESIDE) if (path := find(folder, name)) is not None]
    if not all(path.is_file() and path.stat().st_size <= LARGEST for path in paths):  # a pipe or device has no end
        return None, f"{what}: no regular files of a tokenizer's size; {without}"
    try:
        try:
            if pieces and importlib.util.find_spec("sentencepiece") is None:
                raise ModuleNotFoundError("no sentencepiece", name="sentencepiece")  # transformers would guess a format
            return _by_transformers(paths, _class(_class_name(_settings(paths)), default)), None
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


def as_transformers_reads(
    document: bytes, named: bytes, folder: Path, *, assumed: str | None = None
) -> tuple[bytes, str | None]:
    """A tokenizer.json as transformers reads it with the files beside it; and what a user should know of that.

    `named` is the document with the tokens that those files name. A class of its own builds parts of the tokenizer itself,
    and settings change flags. A file that was saved with them says the same; where the ids of a few texts tell another
    story, those of transformers win, and the note says how to have the file's own. A class that is only `assumed`, because
    no file names one, decides nothing.
    """
    paths = [path for name in BESIDE if (path := find(folder, name)) is not None]
    settings = _settings(paths)
    name = _class_name(settings)
    if find(folder, TOKENIZER) is None:
        return named, None  # just converted
    if assumed is not None and not settings.get("tokenizer_class"):
        return named, _unlike(named, document, paths, assumed)
    if name == "LlamaTokenizer" and b'"ByteLevel"' in document:
        name = None  # transformers itself says that this class is wrong there
    if name is not None and name not in CLASSES:
        return named, f"{TOKENIZER} is taken as it stands: what the class {shown(name)} makes of it is not known here"
    return _compared(named, document, paths, name) if paths else (named, None)


def _compared(named: bytes, document: bytes, paths: list[Path], name: str | None) -> tuple[bytes, str | None]:
    stands = f"{TOKENIZER} is taken as it stands: "
    try:
        theirs = _read_as(document, paths, name or GENERIC[0] + "Fast")
        text = _first_difference(named, theirs)
    except ImportError:
        missing = f"{stands}without transformers, what {name} makes of it is not known"
        return named, missing if name is not None else None
    except BaseException as error:  # foreign libraries and files; what panics in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        return named, f"{stands}transformers fails on it as {name or 'a class of no name'} ({_line(error)})"
    if text is None:
        return named, None
    return theirs, (
        f"with the files beside it, transformers gives other ids than {TOKENIZER} by itself, as for {text!a}: the bundle has "
        "those of transformers; --tokenizer PATH takes the file as it stands"
    )


def _read_as(document: bytes, paths: list[Path], kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / TOKENIZER
        file.write_bytes(document)
        return _by_transformers([file, *paths], kind)


def _unlike(named: bytes, document: bytes, paths: list[Path], assumed: str) -> str | None:
    """What to know where AutoTokenizer would take a class that nobody named."""
    try:
        text = _first_difference(named, _read_as(document, paths, assumed))
    except Exception:  # foreign libraries; nobody asked for this reading
        return None
    return text and (
        f"no file names the tokenizer's class, for which AutoTokenizer takes {assumed}, with other ids, as for {text!a}: the "
        f"bundle follows {TOKENIZER}; name the class in {SETTINGS} if that is meant"
    )


def not_applied(settings: dict[str, Any], document: bytes) -> Iterator[str]:
    """Settings of a tokenizer_config.json that change text in transformers but are no part of a tokenizer.json."""
    if settings.get("split_special_tokens") is True:
        yield "split_special_tokens is not applied: special tokens in a text are read as such"
    if settings.get("clean_up_tokenization_spaces") is True and json.loads(document)["model"].get("type") != "BPE":
        yield "clean_up_tokenization_spaces is not applied: spaces before punctuation stay"


def _first_difference(ours: bytes, theirs: bytes) -> str | None:
    """A text that two tokenizers read or write differently; raises what the library does where the second cannot."""
    from tokenizers import Tokenizer  # noqa: PLC0415  # optional

    left, right = (Tokenizer.from_str(document.decode("utf-8")) for document in (ours, theirs))
    for tokenizer in (left, right):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    added = [token.content for one in (left, right) for token in one.get_added_tokens_decoder().values()]
    around = [f"a {token} b{token}c" for token in dict.fromkeys(added)]
    texts = [*PROBES, *around[:MOST_PROBES]]
    for text, wanted in [(text, right.encode(text).ids) for text in texts]:  # all of them: it must not fail on any
        try:
            ids = left.encode(text).ids
        except Exception:  # bare ones of the library: the second reads more
            return text
        if ids != wanted or left.decode(ids) != right.decode(wanted):
            return text
    return None


def _by_transformers(paths: list[Path], kind: str) -> bytes:
    """The tokenizer.json of a class of transformers, from the tokenizer's own files alone: beside a model's config, another
    class might be guessed.
    """
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
        tokenizer = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
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
