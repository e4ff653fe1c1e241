"""Checkpoints on the Hugging Face hub: only the files that are needed, through the hub's own library and its cache.

Nothing remote is run. Its settings are those of `huggingface_hub`: HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT, a login.
"""

import os
import re
from pathlib import Path

from xlstm_edge_runtime.errors import CheckpointError, InputError, escaped, shown
from xlstm_edge_runtime.layout import CARD, LICENCE

from .extras import import_extra

SCHEME = "hf:"
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
NAME = re.compile(rf"{SCHEME}({PART}/{PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")
CONFIGS = ("config.json", "config.yaml", "config.yml")
BESIDE = (
    *CONFIGS, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "LICENSE*", "README.md",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OLDER_WEIGHTS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
LARGEST_PAPER = 1 << 20
IN_FOLDERS = "*/*"  # copies of other forms and runs; a checkpoint lies at the top


def is_on_hub(source: str | Path) -> bool:
    """Whether a source names a repository of the hub instead of a path."""
    return str(source).startswith(SCHEME)


def fetch(source: str | Path, *, config_only: bool = False) -> Path:
    """The local folder of `hf:OWNER/NAME[@REVISION]`: from the cache, or downloaded into it.

    InputError for a source that is none, DependencyError without the extra, CheckpointError for what cannot be had.
    """
    match = NAME.fullmatch(str(source))
    if match is None:
        raise InputError(f"expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got {shown(str(source))}; correct it")
    repository, revision = match.groups()
    if config_only:
        return _download(repository, revision, CONFIGS)
    folder = _download(repository, revision, (*BESIDE, *WEIGHTS))
    if not any(folder.glob("*.safetensors")):
        folder = _download(repository, revision, (*BESIDE, *OLDER_WEIGHTS))
    return folder


def papers(folder: Path) -> dict[str, bytes]:
    """The licence and the model card that a repository came with, by their names in a bundle."""
    found = [*sorted(folder.glob("LICENSE*"))[:1], *folder.glob("README.md")]
    names = {path: CARD if path.name == "README.md" else LICENCE for path in found}
    return {
        name: path.read_bytes()
        for path, name in names.items()
        if path.is_file() and path.stat().st_size <= LARGEST_PAPER
    }


def _download(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # which the library reads when it is imported
    snapshot_download = import_extra("huggingface_hub", "checkpoints on the hub", "hub").snapshot_download
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), ignore_patterns=[IN_FOLDERS]
            )
        )
    except Exception as error:  # of the library, of its transport, of the disk: they share no base class
        raise CheckpointError(
            f"expected {repository}{'' if revision is None else f'@{revision}'} on the hub or in its cache, got "
            f"{escaped(' '.join(str(error).split()), 160)}; check the name, the network and the login"
        ) from error
