"""Tokenizers in other forms than tokenizer.json, made into one by the libraries that know them.

vocab.json with merges.txt is a byte-level BPE as GPT-2's (or what tokenizer_config.json names); tokenizer.model is
SentencePiece. Both are read by transformers, whose ids the result has; without it, the first by `tokenizers` alone.
"""

import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"
PAIR = ("vocab.json", "merges.txt")
PIECES = "tokenizer.model"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LARGEST = 256 << 20
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
FOREIGN = ("auto_map", "processor_class", "tokenizer_class")  # would name code, or something else than a tokenizer
CLASSES = (
    "GPT2Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "T5Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer",
    "GPTNeoXTokenizer", "GemmaTokenizer", "XLMRobertaTokenizer", "AlbertTokenizer", "BartTokenizer", "CodeGenTokenizer",
    "BloomTokenizer", "CamembertTokenizer", "MBartTokenizer", "PegasusTokenizer", "BigBirdTokenizer", "CohereTokenizer",
)  # fmt: skip
GENERIC = ("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend")  # no class of its own


def find(folder: Path, name: str) -> Path | None:
    """In the checkpoint's folder, its `tokenizer` folder or, for a `checkpoint-*` folder of a run, the one above."""
    places = [folder, folder / "tokenizer"]
    if folder.name.startswith("checkpoint-"):
        places += [folder.parent, folder.parent / "tokenizer"]
    return next((place / name for place in places if (place / name).is_file()), None)


def convert_tokenizer(folder: Path) -> tuple[bytes | None, str | None]:
    """(content of a tokenizer.json, None), (None, why there is none in a line), or (None, None): nothing to convert."""
    names = next((names for names in (PAIR, (PIECES,)) if all(find(folder, name) for name in names)), None)
    if names is None:
        return None, None
    what, without = " and ".join(names), "the bundle has no text"
    paths = [path for name in (*names, *BESIDE) if (path := find(folder, name)) is not None]
    if any(path.stat().st_size > LARGEST for path in paths):
        return None, f"{what}: larger than any tokenizer; {without}"
    try:
        try:
            return _by_transformers(paths, pieces=names == (PIECES,)), None
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


def with_named_tokens(document: bytes, settings: list[dict[str, Any]]) -> tuple[bytes, list[str]]:
    """A tokenizer.json with the tokens that only the files beside it name, as transformers adds them; and their names.

    `settings`: tokenizer_config.json, special_tokens_map.json, added_tokens.json. Tokens with ids of their own come first,
    in the order of these; then the special ones by role. A token of the vocabulary that a file calls special becomes so.
    """
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415  # optional

    tokenizer, added = Tokenizer.from_str(document.decode("utf-8")), list[str]()
    known = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    for content, flags in _named(settings):
        special = bool(flags.pop("special", True))
        if content in known and (known[content] or not special):
            continue
        token = AddedToken(content, special=special, **flags)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        known[content] = special
        added.append(content)
    return (str(tokenizer.to_str()).encode("utf-8"), added) if added else (document, [])


def _named(settings: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bool]]]:
    """Tokens and their flags, as far as files state them."""
    config, roles, by_id = settings
    decoder = config.get("added_tokens_decoder")
    entries = (
        {int(key): value for key, value in decoder.items() if key.isdecimal()} if isinstance(decoder, dict) else {}
    )
    for _, value in sorted(entries.items()):
        yield from _token(value, special=False)
    plain = {name: index for name, index in by_id.items() if isinstance(index, int)}
    for name in sorted(plain, key=lambda name: plain[name]):
        yield from _token(name, special=False)
    for source in (config, roles):
        for key, value in source.items():
            if key.endswith("_token"):
                yield from _token(value, special=True)
            elif key in ("additional_special_tokens", "extra_special_tokens"):
                values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
                for one in values:
                    yield from _token(one, special=True)


def _token(value: Any, *, special: bool) -> Iterator[tuple[str, dict[str, bool]]]:
    """A token written as its text, or as an object with flags."""
    entry = value if isinstance(value, dict) else {"content": value}
    content = entry.get("content")
    if isinstance(content, str) and content:
        flags = {key: entry[key] for key in FLAGS if isinstance(entry.get(key), bool)}
        yield content, {"special": special, **flags}


def _by_transformers(paths: list[Path], *, pieces: bool) -> bytes:
    """Only the tokenizer's own files: with the model's config, another class might be guessed."""
    import transformers  # noqa: PLC0415  # optional, and slow to import

    if (
        pieces and importlib.util.find_spec("sentencepiece") is None
    ):  # transformers would try the file as something else
        raise ModuleNotFoundError("no sentencepiece", name="sentencepiece")

    transformers.logging.set_verbosity(logging.ERROR)
    settings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            target = Path(folder) / path.name
            if path.name == "tokenizer_config.json":
                value = json.loads(path.read_text(encoding="utf-8"))
                settings = value if isinstance(value, dict) else {}
                target.write_text(json.dumps({k: v for k, v in settings.items() if k not in FOREIGN}), encoding="utf-8")
            else:
                shutil.copyfile(path, target)
        kind = _class(transformers, settings, "PreTrainedTokenizerFast" if pieces else "GPT2Tokenizer")
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def _class(transformers: Any, settings: dict[str, Any], default: str) -> Any:
    """The tokenizer class that a config names, if it is one of those in `CLASSES`: a file does not choose what runs."""
    name = str(settings.get("tokenizer_class", default)).removesuffix("Fast")
    if name in GENERIC or name == default.removesuffix("Fast"):
        name = default
    elif name not in CLASSES:
        raise ValueError(f"the tokenizer class {name[:60]}, which is none of {', '.join(CLASSES)}")
    return getattr(transformers, name)


def _by_tokenizers(vocabulary: Path, merges: Path) -> bytes:
    """As GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  # optional

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str()).encode()


def _line(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:100])[1:-1]
