"""The page of the format names what the code has: every key, every option, every set of words, the numbers of the sampler."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from xlstm_edge_runtime import exact_math, graph_file, manifest_sections, snapshot, state
from xlstm_edge_runtime.layout import COMPILED
from xlstm_edge_runtime.manifest import FORMAT, SCHEMA, SECTIONS
from xlstm_edge_runtime.options import GenerationOptions
from xlstm_edge_runtime.sampling import SamplingOptions
from xlstm_edge_runtime.vectors import base_of, positions_of

from ..command import ROOT
from ..conformance import FOLDER

PAGE = (ROOT / "runtime" / "FORMAT.md").read_text("utf-8")
CODE = set(re.findall(r"`([^`]+)`", PAGE))


def keys(document: Any) -> Iterator[str]:
    """Every key that does not name data, as those of files and tensors do."""
    for key, value in document.items() if isinstance(document, dict) else ():
        yield key
        named = isinstance(value, dict) and key in ("files", "compiled", "tensors", "keep")
        yield from keys(list(value.values()) if named else value)
    for value in document if isinstance(document, list) else ():
        yield from keys(value)


def test_every_key_of_a_manifest_is_on_the_page() -> None:
    manifests = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("bundles/*/manifest.json"))]
    named = {key for document in manifests for key in keys(document)}
    assert {"block_size", "sha256", "offset", "head_splits", "add_bos"} <= named  # all sections were really read
    kinds = (manifest_sections.CompiledGraph, manifest_sections.FileEntry)
    named |= {*SECTIONS, *(field.name for kind in kinds for field in dataclasses.fields(kind))}
    assert named <= {word for text in CODE for word in re.findall(r"\w+", text)}


@pytest.mark.parametrize("words", ["TARGETS", "LOADERS", "KINDS", "SAMPLING", "RECIPE"])
def test_every_closed_set_is_on_the_page(words: str) -> None:
    assert {*getattr(manifest_sections, words)} <= CODE


def test_every_operator_is_on_the_page() -> None:
    listed = PAGE[PAGE.index("**Operators**") : PAGE.index("**vectors.json**")]
    assert set(re.findall(r"`(\w+)`", listed)) == graph_file.OPERATORS | graph_file.REWRITTEN


def test_every_option_is_on_the_page() -> None:
    options = {field.name for kind in (SamplingOptions, GenerationOptions) for field in dataclasses.fields(kind)}
    assert options <= CODE


def test_versions_and_names_of_files_are_on_the_page() -> None:
    assert f'| `format`, `schema` | `"{FORMAT}"`, `{SCHEMA}`;' in PAGE
    assert {f'"{version}"' for version in snapshot.VERSIONS.values()} <= CODE
    assert {f'"{snapshot.FORMAT}"', snapshot.METADATA, *snapshot.ENTRY, *snapshot.STORED, *state.BESIDE} <= CODE
    compiled = {text.replace("NAME", "8gen2") for text in CODE if text.startswith("model.") and text != "model.onnx"}
    assert len(compiled) == 6
    assert all(COMPILED.fullmatch(name) for name in compiled)


def test_the_sampler_s_numbers_are_on_the_page() -> None:
    numbers = {repr(float(x)) for x in exact_math.TABLE / exact_math.ONE}
    numbers |= {repr(exact_math.STEPS_IN_LN2), repr(exact_math.STEP)}
    assert len(numbers) == 18
    assert numbers <= set(re.findall(r"\d+\.\d+", PAGE))
    for bounds in (
        "1..2^31",
        f"1..{manifest_sections.LARGEST_CHUNK}",
        "1,024 ids",
        "at most 64, name",
        "at most 32 forms",
    ):
        assert bounds in PAGE


@pytest.mark.parametrize("chunk", [1, 8, 9, 64, 128, 4096])
def test_the_positions_of_vectors_are_as_the_page_has_them(chunk: int) -> None:
    assert "is 0, 2, b/2 - 1 (rounded down first), b - 1, 2b - 1, 2b + 8" in " ".join(PAGE.split())
    b = min(max(chunk, 8), 128)
    assert base_of(chunk) == b
    assert positions_of(chunk) == (0, 2, b // 2 - 1, b - 1, 2 * b - 1, 2 * b + 8)
