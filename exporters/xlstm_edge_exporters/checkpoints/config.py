"""Read a config file that nobody vouches for, and find the model's settings in it.

Files are small, plain and finite here: no tags that make objects, no aliases that multiply, no numbers that take
minutes. Values like `${model.width}` are resolved inside the file, as OmegaConf does; nothing of the outside (the
environment, the clock) is. Which settings matter is `settings`' business.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from xlstm_edge_runtime.errors import CheckpointError, escaped, shown

from .settings import meaning_of

LARGEST_JSON, LARGEST_YAML = 16 << 20, 48 << 10  # PyYAML reads 100 kB a second
LARGEST_NUMBER, LONGEST_NUMBER = 2**63, 64
MOST_VALUES, DEEPEST, MOST_MERGED = 200_000, 40, 256
MOST_REFERENCES, LONGEST_TEXT = 200, 1_000
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
# Sections that hold an xLSTM v1 config in published wrappers; others are found by what is in them.
LONGEST_KEY = 200  # characters; the patterns that settings are held against take time that grows faster
WRAPPERS = ("_xlstm_config", "xlstm_cfg", "xlstm_config")
V1_SIGNS = {"mlstm_block", "slstm_block", "slstm_at"}
WIDTHS, DEPTHS = {"embedding_dim", "hidden_size"}, {"num_blocks", "num_hidden_layers", "num_heads"}


@dataclass(frozen=True, slots=True)
class Section:
    """The model's settings, and where in the file they stood (None: at the top); `around` are the settings above it."""

    values: Mapping[str, Any]
    path: str | None
    around: Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds on what a few bytes can cost."""

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys (`<<`) of at most a few hundred entries: nested ones multiply."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        if any(len(value.value) > MOST_MERGED for value in merged):
            raise yaml.YAMLError("merge keys that multiply")
        super().flatten_mapping(node)
        if merged and len(node.value) > 10 * MOST_MERGED:
            raise yaml.YAMLError("merge keys that multiply")

    def construct_scalar(self, node: Any) -> Any:
        """Text as it is; numbers of ordinary length."""
        if node.tag.endswith((":int", ":float", ":timestamp")) and len(str(node.value)) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        return super().construct_scalar(node)


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping, as plain data; CheckpointError in one sentence for anything else."""
    is_json, kind = path.suffix == ".json", path.suffix[1:]
    limit, name = LARGEST_JSON if is_json else LARGEST_YAML, escaped(path.name)
    if (size := path.stat().st_size) > limit:
        raise CheckpointError(f"expected {name} of at most {limit} bytes, got {size}; keep only the config in it")
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text) if is_json else yaml.load(text, _Loader)
        tree = _plain(value, iter(range(MOST_VALUES)), DEEPEST)
    # PyYAML and json raise of their own: ValueError (dates, digits), AttributeError, KeyError, IndexError (odd tags)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, yaml.YAMLError, RecursionError) as error:
        reason = escaped(" ".join(str(error).split()), 160)
        if (
            isinstance(error, (AttributeError, LookupError, TypeError)) or "digit" in reason
        ):  # Python's words, no one's help
            reason = "a value that is not of the kind that it says"
        raise CheckpointError(f"expected {name} to be valid {kind}, got {reason}; repair it") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"expected {name} to hold a mapping, got {shown(value)}; repair it")
    return tree


def read_config(paths: Sequence[Path], keys: Set[str]) -> tuple[Path, Section, dict[str, Any]]:
    """(the file, the model's section in it, its settings with `keys` resolved) of the one config that describes a model.

    A folder may hold two, as Hugging Face's beside the trainer's; they must not contradict each other.
    """
    read = []
    for path in paths:
        tree = read_mapping(path)
        section = find_section(tree)
        read.append((path, section, resolved(section, tree, keys)))
    first, *others = [entry for entry in read if _describes(entry[1].values)] or read
    for path, _, settings in others:
        shared = keys & settings.keys() & first[2].keys() if _describes(settings) else set()
        if odd := sorted(key for key in shared if settings[key] != first[2][key]):
            raise CheckpointError(
                f"expected one config, got {escaped(first[0].name)} and {escaped(path.name)} with different {odd[0]}; "
                "leave only this model's there"
            )
    return first


def find_section(tree: Mapping[str, Any]) -> Section:
    """The one mapping of the file that describes an xLSTM; CheckpointError that lists them if there are several."""
    if _describes(tree) and not any(isinstance(tree.get(name), dict) for name in WRAPPERS):
        return Section(tree, None, {})
    found = list({id(values): (path, values) for path, values in reversed([*_search(tree, tree, ())])}.values())[::-1]
    named = [entry for entry in found if entry[0][-1] in WRAPPERS]
    if len(found) > 1 and len(named) != 1:
        paths = ", ".join(escaped(".".join(path)) for path, _ in found[:6])
        raise CheckpointError(f"expected one model's settings in the config, got {paths}; leave only this model's")
    if not found:
        return Section(tree, None, {})
    path, values = (named or found)[0]
    around = {key: value for key, value in tree.items() if key != path[0]}
    return Section(values, ".".join(path), around)


def resolved(section: Section, tree: Mapping[str, Any], keys: Set[str]) -> dict[str, Any]:
    """The section with `${...}` replaced in the settings named by `keys`; others stay as they are, for they are ignored.

    Those that only stand there to be referred to are left out, unless their name means something of its own.
    """
    resolver, top = _Resolver(tree, keys), tuple(section.path.split(".")) if section.path else ()
    values = {
        key: resolver.setting(value, (*top, key)) if key in keys else value for key, value in section.values.items()
    }
    variables = {key for key in values.keys() - keys if (*top, key) in resolver.used and meaning_of(key) is None}
    return {key: value for key, value in values.items() if key not in variables}


def _plain(value: Any, budget: Iterator[int], depth: int) -> Any:
    """A tree of mappings, lists, text, numbers, flags and null; shared parts are copied, within a budget."""
    if next(budget, None) is None or depth < 0:
        raise ValueError("more values, or deeper ones, than any config has (aliases that multiply?)")
    if isinstance(value, dict):
        if any(isinstance(key, str) and len(key) > LONGEST_KEY for key in value):
            raise ValueError("a longer name than any setting has")
        return {str(_plain(key, budget, 0)): _plain(v, budget, depth - 1) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, budget, depth - 1) for v in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise ValueError("a number beyond 64 bits")
        return value
    if hasattr(value, "isoformat"):  # YAML reads 2024-05-01 as a date
        return value.isoformat()
    raise ValueError(f"a value of kind {type(value).__name__}")


def _describes(mapping: Mapping[str, Any]) -> bool:
    return bool(V1_SIGNS & mapping.keys()) or bool(WIDTHS & mapping.keys() and DEPTHS & mapping.keys())


def _search(
    mapping: Mapping[str, Any], tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for key, stated in mapping.items():
        value = stated
        if isinstance(value, str) and REFERENCE.fullmatch(value):
            try:
                value, _ = _Resolver(tree, frozenset()).lookup(value[2:-1], (*path, key))
            except CheckpointError:  # it may belong to something else than the model
                continue
        if isinstance(value, dict) and len(path) < 4:
            if _describes(value):
                yield (*path, key), value
            else:
                yield from _search(value, tree, (*path, key))


class _Resolver:
    """Replaces references, a bounded number of them: nested ones multiply."""

    def __init__(self, tree: Mapping[str, Any], keys: Set[str]) -> None:
        self.tree, self.keys, self.left = tree, keys, MOST_REFERENCES
        self.used: set[tuple[str, ...]] = set()  # places that were referred to
        self.asked = "a setting"  # which one it is about, for messages

    def setting(self, value: Any, place: tuple[str, ...]) -> Any:
        """The value of a setting without references; `place` is where it stands."""
        self.asked = _dotted(place)
        return self.resolve(value, place)

    def resolve(self, value: Any, place: tuple[str, ...]) -> Any:
        """The same for a part of it, or for what it refers to."""
        if isinstance(value, dict):
            return {key: self.resolve(v, (*place, key)) if key in self.keys else v for key, v in value.items()}
        if isinstance(value, list):
            return [self.resolve(v, (*place, str(i))) for i, v in enumerate(value)]
        while isinstance(value, str) and "${" in value:
            if whole := REFERENCE.fullmatch(value):
                value, place = self.lookup(whole[1], place)
                if isinstance(value, (dict, list)):
                    return self.resolve(value, place)
                continue
            text = REFERENCE.sub(partial(self._text, place), value)
            if text == value or len(text) > LONGEST_TEXT:
                raise CheckpointError(
                    f"expected {self.asked} with references that can be followed, got {shown(value)}; write the value"
                )
            value = text
        return value

    def _text(self, place: tuple[str, ...], reference: re.Match[str]) -> str:
        found = self.resolve(*self.lookup(reference[1], place))
        if isinstance(found, (dict, list)) or len(str(found)) > LONGEST_TEXT:
            raise CheckpointError(
                f"expected {self.asked} to refer to text or a number, got {shown(found)}; write the value"
            )
        return str(found)

    def lookup(self, reference: str, place: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """(value, where it stands) of `a.b.0` from the top, or with leading dots from the setting's own level.

        As OmegaConf reads it: a reference on the way is followed, and what is relative inside a value counts from there.
        """
        self.left -= 1
        if self.left < 0:
            raise CheckpointError(f"expected {self.asked} to have a value, got references in a circle; write the value")
        if ":" in reference:
            raise CheckpointError(
                f"expected {self.asked} as a value or a reference inside the config, got "
                f"{shown('${' + reference + '}')}, which reaches outside; write the value that the training had"
            )
        dots = len(reference) - len(reference.lstrip("."))
        steps = re.split(r"[.\[]", reference[dots:].replace("]", ""))
        value: Any = self.tree
        path: tuple[str, ...] = ()
        for step in (*(place[: max(len(place) - dots, 0)] if dots else ()), *steps):
            while isinstance(value, str) and (whole := REFERENCE.fullmatch(value)):
                value, path = self.lookup(whole[1], path)
            path = (*path, step)
            self.used.add(path)
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step[:9].isascii() and step.isdecimal() and int(step[:9]) < len(value):
                value = value[int(step[:9])]
            else:
                raise CheckpointError(
                    f"expected {self.asked} to refer to a setting of the config, got {shown(reference)}, which it "
                    "has not; write the value that the training had"
                )
        return value, path


def _dotted(place: tuple[str, ...]) -> str:
    return escaped(".".join(place))
