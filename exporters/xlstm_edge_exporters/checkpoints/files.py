"""Find the files of a checkpoint, trusting none of them: regular files only, inside the folder or the hub cache's blobs.

Weights come as safetensors (one file, Hugging Face shards with or without an index, or `model_0.safetensors`,
`model_1...`) or as a torch state dict, often among an optimizer's and a scheduler's files. Where several models lie in
one folder, the user names one. Knows nothing of what is inside.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlstm_edge_runtime.errors import CheckpointError, escaped, shown

from ..weights import listed
from .config import read_mapping

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS_SUFFIXES, CONFIG_SUFFIXES = (".safetensors", *TORCH_SUFFIXES), (".json", ".yaml", ".yml")
CONFIGS = ("config.yaml", "config.json", "config.yml")
HINT = "expected config.yaml or config.json beside model.safetensors, shards of it, or a torch state dict"
INDEX = re.compile(r".*\.(safetensors|bin)\.index\.json")
NUMBERED = re.compile(r"model_[0-9]{1,6}\.safetensors")
SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.safetensors|\.bin)")
# What trainers leave beside the weights.
TRAINER_FILE = re.compile(
    r"(optimizers?|optim|schedulers?|sched|lr_schedulers?|rng_state|random_states|training_args|train_state|trainer_state|"
    r"scaler|grad_scaler|sampler|dataloader|zero_pp_rank)[._-].*"
)
# What Orbax, JAX's library, leaves in a checkpoint, and where a run of xlstm-jax has it.
ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
ORBAX_PLACES = ("", "*/", "checkpoints/*/", "checkpoints/*/*/")
STANDARD = ("model.safetensors", "model.safetensors.index.json")
TWINS = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # the same weights in the older format


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint's folder, config files (mostly one) and weight files, regular and in place.

    `key` is the state dict that the user named inside a torch file; `unread` the names of other weight files.
    """

    folder: Path
    configs: tuple[Path, ...]
    weights: tuple[Path, ...]
    key: str | None = None
    unread: tuple[str, ...] = ()


def locate(path: Path, name: str | None = None) -> Located:
    """Files of the checkpoint at `path` (a folder, or a weights file with its config beside it).

    `name` chooses among several models: a file name, a key inside a torch file, or FILE:KEY.
    """
    try:
        return _locate(path, name)
    except (OSError, ValueError) as error:  # names too long for a file system, folders without permission
        reason = getattr(error, "strerror", None) or "a name that no file can have"
        raise CheckpointError(f"{HINT}, got {shown(str(path))}: {reason}; check the path") from error


def is_config(path: Path) -> bool:
    """Whether a path is a config alone: a config file, or a folder that holds one and no weights."""
    if path.is_dir():
        return not any(file.suffix in WEIGHTS_SUFFIXES or file.is_dir() for file in path.iterdir())
    return path.suffix in CONFIG_SUFFIXES and not path.name.endswith(".index.json")


def locate_configs(path: Path) -> tuple[Path, ...]:
    """The config file at `path`, or those of the folder there; CheckpointError if there is none."""
    try:
        if path.is_dir():
            found = [path / name for name in CONFIGS if (path / name).exists()]
        else:
            found = [path] if path.suffix in CONFIG_SUFFIXES else []
        if found:
            for config in found:
                _refuse_special(config)
            return tuple(found)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected a config at {shown(str(path))}, got {error}; check the path") from error
    raise CheckpointError(f"expected config.json or config.yaml at {shown(str(path))}, got none; check the path")


def sha256(paths: tuple[Path, ...]) -> str:
    """One hash over the files' contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _locate(path: Path, name: str | None) -> Located:
    if not path.exists():
        raise CheckpointError(f"{HINT}, got {shown(str(path))}, which does not exist; check the path")
    if path.is_dir():
        folder, weights, key, unread = _choose(path, name)
    else:
        _refuse_special(path)
        folder, key, unread = path.parent, name, ()
        weights = _shards(path) if INDEX.fullmatch(path.name) else (path,)
    if configs := [folder / config for config in CONFIGS if (folder / config).exists()]:
        return Located(folder, tuple(_inside(config, folder) for config in configs), weights, key, unread)
    raise CheckpointError(f"{HINT}, got {shown(str(folder))} without a config; put the config of this training there")


def _choose(folder: Path, name: str | None) -> tuple[Path, tuple[Path, ...], str | None, tuple[str, ...]]:
    """(folder, weight files, key inside them, files not read)."""
    groups = dict(_groups(folder))
    names = [n for n in groups if not (n in TWINS and any(s in groups for s in STANDARD))]
    wanted, key = name, None
    if name is not None and name not in groups:
        wanted, _, key = name.partition(":")
        if wanted not in groups:
            wanted, key = None, name
    if wanted is None and len(names) > 1:
        raise CheckpointError(
            f"expected one model in {shown(str(folder))}, got {listed(names)}; name one with --weights FILE"
        )
    if wanted is None and not names:
        return _inner(folder, name)
    wanted = wanted or names[0]
    return folder, groups[wanted], key or None, tuple(n for n in groups if n != wanted)


def _inner(folder: Path, name: str | None) -> tuple[Path, tuple[Path, ...], str | None, tuple[str, ...]]:
    """No weights here: a training run's folder as the Helibrunna trainer leaves it, or a reason to ask."""
    if any(any(folder.glob(place + sign)) for place in ORBAX_PLACES for sign in ORBAX):
        raise CheckpointError(
            f"expected safetensors or a torch state dict, got an Orbax checkpoint of JAX in {shown(str(folder))}; convert it "
            "with convert_mlstm_checkpoint_jax_to_torch_simple.py of the xlstm-jax repository, and export what that writes"
        )
    inner = sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())
    last = [p for p in inner if p.name.endswith("-last")]
    if len(last) == 1:
        return _choose(last[0], name)
    if inner:
        raise CheckpointError(
            f"expected weights in {shown(str(folder))}, got only folders {listed([p.name for p in inner])}; "
            "name the folder of one of them"
        )
    raise CheckpointError(f"{HINT}, got {shown(str(folder))} without any weights; check the path")


def _groups(folder: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Each model in a folder: the name to choose it by, and its files."""
    entries = sorted(p for p in folder.iterdir() if not p.is_dir())
    seen: set[str] = set()
    for index in (p for p in entries if INDEX.fullmatch(p.name)):
        shards = _shards(_inside(index, folder))
        if not {p.name for p in shards} <= seen:  # else a second index of the same files
            seen |= {p.name for p in shards}
            yield index.name, shards
    rest = [p for p in entries if p.name not in seen and p.suffix in WEIGHTS_SUFFIXES]
    rest = [p for p in rest if p.suffix == ".safetensors" or not TRAINER_FILE.fullmatch(p.name)]
    if any(NUMBERED.fullmatch(p.name) for p in rest):
        yield "model_0.safetensors", _numbered(folder, rest)
    series = dict.fromkeys(m.group(1, 3, 4) for p in rest if (m := SHARD.fullmatch(p.name)))
    for stem, total, suffix in series:
        names = [f"{stem}-{i:05d}-of-{total}{suffix}" for i in range(1, int(total) + 1)]
        yield names[0], tuple(_inside(folder / name, folder) for name in _complete(names, rest))
    for path in rest:
        if not NUMBERED.fullmatch(path.name) and not SHARD.fullmatch(path.name):
            yield path.name, (_inside(path, folder),)


def _numbered(folder: Path, rest: list[Path]) -> tuple[Path, ...]:
    count = sum(1 for p in rest if NUMBERED.fullmatch(p.name))
    names = _complete([f"model_{i}.safetensors" for i in range(count)], rest)
    return tuple(_inside(folder / name, folder) for name in names)


def _complete(names: list[str], rest: list[Path]) -> list[str]:
    there = {p.name for p in rest}
    if missing := [name for name in names if name not in there]:
        raise CheckpointError(
            f"expected shards numbered without a gap, got none numbered {escaped(missing[0])}; complete the download"
        )
    return names


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_mapping(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"expected {escaped(index.name)} with a weight_map of file names, got none; repair it")
    paths = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(WEIGHTS_SUFFIXES):
            raise CheckpointError(
                f"expected shards inside the checkpoint's folder, got {shown(name)}; do not trust this index"
            )
        if not (index.parent / name).exists():
            raise CheckpointError(
                f"expected the shard {escaped(name)} that {escaped(index.name)} names, got none; complete the download"
            )
        paths.append(_inside(index.parent / name, index.parent))
    if not paths:
        raise CheckpointError(f"expected {escaped(index.name)} to name shards, got an empty weight_map; repair it")
    return tuple(paths)


def _inside(path: Path, folder: Path) -> Path:
    """The path, if it is a regular file of the folder, or a link into the blobs of the hub cache around it."""
    _refuse_special(path)
    real, home = path.resolve(), folder.resolve()
    homes = [home, *(p.parent / "blobs" for p in home.parents if p.name == "snapshots")]
    if not any(real.is_relative_to(h) for h in homes):
        raise CheckpointError(
            f"expected the checkpoint's files inside its folder, got {escaped(path.name)}, a link that leaves it; "
            "put the file itself there"
        )
    return path


def _refuse_special(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"expected {shown(str(path))} to be a regular file, got something else; check the path")
