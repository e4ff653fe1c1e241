"""Tokenizers in other forms than tokenizer.json, made into one by the libraries that know them.

vocab.json with merges.txt is a byte-level BPE as GPT-2's (or what tokenizer_config.json names); tokenizer.model is
SentencePiece. Both are read by transformers, whose ids the result has; without it, the first by `tokenizers` alone.
"""

import importlib.util
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"
PAIR = ("vocab.json", "merges.txt")
PIECES = "tokenizer.model"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LARGEST = 256 << 20
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
            shutil.copyfile(path, Path(folder) / path.name)
            if path.name == "tokenizer_config.json":
                value = json.loads(path.read_text(encoding="utf-8"))
                settings = value if isinstance(value, dict) else {}
        default = "PreTrainedTokenizerFast" if pieces else "GPT2Tokenizer"
        name = str(settings.get("tokenizer_class", default)).removesuffix("Fast")
        kind = getattr(transformers, default if name in GENERIC else name, None) or getattr(transformers, default)
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def _by_tokenizers(vocabulary: Path, merges: Path) -> bytes:
    """As GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415  # optional

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str()).encode()


def _line(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:100])[1:-1]
