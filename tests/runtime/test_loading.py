"""Damaged bundles: `verify` refuses each with one sentence and exit code 1, `load` with a BundleError."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlstm_edge_runtime import BundleError, load

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case

Spoil = Callable[[Path], object]
DATA = "model.onnx.data"


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / DATA).write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def drop_state(manifest: dict[str, Any]) -> None:
    gone = manifest["state"]["tensors"].pop()
    size = 4
    for number in gone["shape"]:
        size *= number
    manifest["state"]["bytes_per_session"] -= size


def reshape_state(manifest: dict[str, Any]) -> None:
    manifest["state"]["tensors"][0]["shape"].reverse()


def head_splits(number: object) -> Spoil:
    return edit(lambda manifest: manifest["state"]["tensors"][0].update(head_splits=number))


def link(folder: Path) -> None:
    (folder / DATA).rename(folder.parent / "elsewhere")
    (folder / DATA).symlink_to(folder.parent / "elsewhere")


def other_vectors(folder: Path) -> None:
    vectors = json.loads((folder / "vectors.json").read_text())
    vectors["checks"][0]["values"][0] += 1.0
    (folder / "vectors.json").write_text(json.dumps(vectors))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, as a careless tool would."""
    import hashlib

    def measure(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(measure)(folder)


def both(first: Spoil, second: Spoil) -> Spoil:
    return lambda folder: (first(folder), second(folder))


BAD: dict[str, tuple[Spoil, str]] = {
    "flipped weight byte": (flip_byte, "damaged"),
    "truncated data": (lambda f: (f / DATA).write_bytes((f / DATA).read_bytes()[:-8]), "damaged"),
    "wrong hash": (edit(lambda m: m["files"][DATA].update(sha256="0" * 64)), "damaged"),
    "missing data": (lambda f: (f / DATA).unlink(), "copy the whole folder"),
    "state of no splits": (head_splits(0), "head_splits"),
    "state of uneven splits": (head_splits(7919), "head_splits"),
    "state of splits of text": (head_splits("2"), "head_splits"),
    "missing state": (edit(drop_state), "only inputs of the state table"),
    "missing state tensors": (edit(lambda m: m["state"]["tensors"].pop()), "bytes_per_session"),
    "reshaped state": (edit(reshape_state), "of shape"),
    "other schema": (edit(lambda m: m.update(schema=99)), "with this version"),
    "other format": (edit(lambda m: m.update(format="gguf")), "with this version"),
    "newer runtime": (edit(lambda m: m["minimum_runtime"].update(onnxruntime="99.0")), "upgrade"),
    "no json": (lambda f: (f / "manifest.json").write_text("{"), "JSON"),
    "wrong type": (edit(lambda m: m["graph"].update(chunk="many")), "graph chunk as an integer"),
    "zero chunk": (edit(lambda m: m["graph"].update(chunk=0)), "an integer from 1"),
    "escaping name": (edit(lambda m: m["files"].update({"../x": m["files"][DATA]})), "plain file names"),
    "symbolic link": (link, "copy the whole folder"),
    "unlisted vectors": (edit(lambda m: m["files"].pop("vectors.json")), "vectors.json"),
    "tampered graph": (both(lambda f: (f / "model.onnx").write_bytes(b"onnx"), rehash), "ONNX graph"),
    "tampered vectors": (both(other_vectors, rehash), "computes something else"),
}
LOADS = {"tampered vectors"}  # only `verify` can see these


@pytest.fixture
def bundle(bundle_of: Callable[[Case, str], Path], tmp_path: Path) -> Path:
    """A good bundle to be spoiled."""
    return Path(shutil.copytree(bundle_of(BY_NAME["lm-mixed"], "cpu"), tmp_path / "bundle"))


@pytest.mark.parametrize("name", BAD)
def test_verify_refuses(name: str, bundle: Path, command: Command) -> None:
    spoil, fragment = BAD[name]
    spoil(bundle)
    result = command("verify", bundle)
    assert_one_sentence(result, 1)
    assert fragment in result.err


def test_verify_hashes_what_is_too_large_for_every_start(
    bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlstm_edge_runtime.loading.HASHED_AT_LOAD", 0)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = command("verify", bundle)
        assert_one_sentence(result, 1)
        assert f"expected {name} with sha256" in result.err
        (bundle / name).write_bytes(content)


@pytest.mark.parametrize("name", [name for name in BAD if name not in LOADS])
def test_load_refuses(name: str, bundle: Path) -> None:
    spoil, fragment = BAD[name]
    spoil(bundle)
    with pytest.raises(BundleError, match="expected") as caught:
        load(bundle)
    assert fragment in str(caught.value)


def test_the_unspoiled_bundle_passes(bundle: Path, command: Command) -> None:
    result = command("verify", bundle, "--json")
    assert result.code == 0
    assert json.loads(result.out)["ok"] is True


def test_verify_against_another_checkpoint(
    bundle: Path, checkpoint_of: Callable[[Case], Path], command: Command
) -> None:
    assert_one_sentence(command("verify", bundle, "--against", checkpoint_of(BY_NAME["lm-no-slstm"])), 1)
    assert command("verify", bundle, "--against", checkpoint_of(BY_NAME["lm-mixed"])).code == 0


@pytest.mark.parametrize("path", ["nothing", "bundle/manifest.json"])
def test_no_bundle_at_all_is_bad_input(path: str, bundle: Path, command: Command) -> None:
    assert_one_sentence(command("verify", bundle.parent / path), 2)
