"""Snapshots: the safetensors format as its own library reads and writes it, and every way to break one."""

import json
import os
import shutil
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.snapshot import read_snapshot, write_snapshot
from xlstm_edge_runtime.state import StateSpec, StateTable

from ..conftest import BY_NAME
from ..oracles.cases import Case

Header = dict[str, Any]


@pytest.fixture(scope="module")
def model(bundle_of: Callable[[Case, str], Path]) -> xr.Model:
    return xr.load(bundle_of(BY_NAME["lm-mixed"], "cpu"), threads=1)


@pytest.fixture(params=["float32", "float16"])
def saved(model: xr.Model, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    session = model.session()
    session.prefill([1, 2, 3])
    session.save(tmp_path / "state.safetensors", dtype=request.param)
    return tmp_path / "state.safetensors"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def test_the_library_reads_what_is_written(model: xr.Model, tmp_path: Path) -> None:
    session, saved = model.session(), tmp_path / "state"
    session.prefill([1, 2, 3])
    session.save(saved)
    expected, got = session.state, load_file(saved)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], expected[name]) for name in expected)
    assert metadata_of(saved) == {
        "format": "xlstm-edge state", "version": "2", "source": model.manifest.source, "tokens": "3",
    }  # fmt: skip


def test_matrix_memories_in_float16(model: xr.Model, tmp_path: Path) -> None:
    """Half the bytes, each head within float16 of its largest number; all else as it is."""
    session, saved = model.session(), tmp_path / "state"
    session.prefill([1, 2, 3])
    session.save(saved, dtype="float16")
    expected, got = session.state, load_file(saved)
    matrices = {name for name in expected if name.endswith(".C")}
    assert matrices
    assert matrices < expected.keys()
    assert got.keys() == expected.keys() | {f"{name}.scale" for name in matrices}
    assert metadata_of(saved)["version"] == "3"
    other = model.session()
    other.load(saved)
    for name, array in other.state.items():
        assert got[name].dtype == (np.float16 if name in matrices else np.float32)
        near = np.abs(expected[name]).max((2, 3), keepdims=True) * 2.0**-11 if name in matrices else 0
        assert (np.abs(array - expected[name]) <= near).all()
    assert np.allclose(other.step(5), session.step(5), atol=2e-3)


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-30, 1.0, 1e30, 3e38])
def test_float16_takes_numbers_of_any_size(size: float, model: xr.Model, tmp_path: Path) -> None:
    table = model.manifest.state
    state = {name: np.full_like(array, size) for name, array in table.initial().items()}
    for array in state.values():
        array[..., ::2] *= np.float32(-1e-3)  # far from overflow, and none is lost
    write_snapshot(tmp_path / "state", state, table, source=model.manifest.source, tokens=0, dtype="float16")
    read, _ = read_snapshot(tmp_path / "state", table, source=model.manifest.source)
    assert all(np.allclose(read[name], array, rtol=2.0**-11, atol=1e-38) for name, array in state.items())


@pytest.mark.parametrize("dtype", ["float8", "", None, 16, np.float16, ["float16"], {}])
def test_snapshots_of_another_dtype_are_refused(dtype: Any, model: xr.Model, tmp_path: Path) -> None:
    with pytest.raises(xr.InputError, match="float32 or float16"):
        model.session().save(tmp_path / "state", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_what_the_library_writes_is_read(model: xr.Model, saved: Path, tmp_path: Path) -> None:
    """It sorts tensors in its own way."""
    save_file(load_file(saved), tmp_path / "again.safetensors", metadata_of(saved))
    session, again = model.session(), model.session()
    session.load(saved)
    again.load(tmp_path / "again.safetensors")
    assert again.tokens == 3
    assert np.array_equal(session.step(5), again.step(5))


def resave(path: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    tensors, metadata = load_file(path), metadata_of(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def rewrite(change: Callable[[Header], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return spoil


def first(header: Header) -> dict[str, Any]:
    entry: dict[str, Any] = next(value for name, value in header.items() if name != "__metadata__")
    return entry


def two_in_one_place(header: Header) -> None:
    """Of one shape, so that the sizes are right."""
    for entry in (value for name, value in header.items() if name != "__metadata__"):
        twins = [h for h in header.values() if h.get("shape") == entry["shape"] and h is not entry]
        if twins:
            entry["data_offsets"] = twins[0]["data_offsets"]
            return
    raise AssertionError("no two tensors of one shape")


def each(tensors: dict[str, Any], function: Callable[[Any], Any]) -> None:
    tensors.update({name: function(array) for name, array in tensors.items()})


def big_claim(path: Path) -> None:
    """A header that claims a terabyte, in a file of a few bytes."""
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def old(path: Path) -> None:
    path.unlink()
    np.savez(path.with_suffix(".npz"), x=np.zeros(3))
    path.with_suffix(".npz").rename(path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "batch of two": lambda p: resave(p, lambda t, m: each(t, lambda a: np.concatenate([a, a]))),
    "batch of none": lambda p: resave(p, lambda t, m: each(t, lambda a: a[:0])),
    "NaN": lambda p: resave(p, lambda t, m: each(t, lambda a: a * np.float32("nan"))),
    "float16": lambda p: resave(p, lambda t, m: each(t, lambda a: a.astype(np.float16))),
    "a tensor less": lambda p: resave(p, lambda t, m: t.popitem()),
    "a tensor more": lambda p: resave(p, lambda t, m: t.update(extra=np.zeros(3, np.float32))),
    "other source": lambda p: resave(p, lambda t, m: m.update(source="0" * 64)),
    "no source": lambda p: resave(p, lambda t, m: m.pop("source")),
    "unknown metadata": lambda p: resave(p, lambda t, m: m.update(more="x")),
    "another version": lambda p: resave(p, lambda t, m: m.update(version="4")),
    "negative tokens": lambda p: resave(p, lambda t, m: m.update(tokens="-4")),
    "endless tokens": lambda p: resave(p, lambda t, m: m.update(tokens="9" * 5000)),
    "tokens as a word": lambda p: resave(p, lambda t, m: m.update(tokens="many")),
    "no metadata": rewrite(lambda h: h.pop("__metadata__")),
    "metadata as a list": rewrite(lambda h: h.update(__metadata__=[])),
    "overlap": rewrite(lambda h: first(h).update(data_offsets=list(h.values())[2]["data_offsets"])),
    "two tensors in one place": rewrite(two_in_one_place),
    "offsets beyond the file": rewrite(lambda h: first(h).update(data_offsets=[1 << 50, (1 << 50) + 4])),
    "offsets of text": rewrite(lambda h: first(h).update(data_offsets=["0", "4"])),
    "three offsets": rewrite(lambda h: first(h)["data_offsets"].append(9)),
    "negative shape": rewrite(lambda h: first(h).update(shape=[-1, 2])),
    "shape of floats": rewrite(lambda h: first(h).update(shape=[float(n) for n in first(h)["shape"]])),
    "unknown member": rewrite(lambda h: first(h).update(more=1)),
    "header cut": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "data cut": lambda p: p.write_bytes(p.read_bytes()[:-4]),
    "data beyond the end": lambda p: p.write_bytes(p.read_bytes() + bytes(4)),
    "empty": lambda p: p.write_bytes(b""),
    "a header of a terabyte": big_claim,
    "header of other bytes": lambda p: p.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe\x00\x01"),
    "deep header": lambda p: p.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "an archive of numpy": old,
    "a pipe": pipe,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_snapshot_changes_nothing(name: str, model: xr.Model, saved: Path) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    before = session.state
    BROKEN[name](saved)
    with pytest.raises(xr.StateError, match=r"expected .*got .*; "):
        session.load(saved)
    assert session.tokens == 3
    assert all(np.array_equal(array, before[key]) for key, array in session.state.items())


def test_a_large_file_of_another_shape_is_refused_before_it_is_read(model: xr.Model, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file({"x": np.zeros(50_000_000, np.float32)}, path)
    tracemalloc.start()
    with pytest.raises(xr.StateError):
        read_snapshot(path, model.manifest.state, source=model.manifest.source)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("place", [".", "", "no/such/folder/x", "a" * 300, "nul\0byte", "pipe", "socket", "link"])
def test_no_place_for_a_snapshot(place: str, model: xr.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are of the same kind as pipes here: root's tests must not risk those of the system."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        before = {path.name: path.lstat() for path in tmp_path.iterdir()}
        with pytest.raises(xr.StateError, match="choose another path"):
            model.session().save(place)
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == {n: s.st_ino for n, s in before.items()}


def test_a_full_disk_keeps_the_old_snapshot(model: xr.Model, saved: Path) -> None:
    resource = pytest.importorskip("resource", reason="POSIX only")
    content, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(xr.StateError):
            model.session().save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == content
    assert list(saved.parent.iterdir()) == [saved]


def test_many_threads_may_save_and_load_one_path(model: xr.Model, tmp_path: Path) -> None:
    """Every save succeeds, every load sees one of the saved states, whole."""
    path, errors = tmp_path / "shared.safetensors", list[BaseException]()
    source, table = model.manifest.source, model.manifest.state
    states = [{name: np.full_like(a, n) for name, a in table.initial().items()} for n in range(4)]
    write_snapshot(path, states[0], table, source=source, tokens=0)

    def work(number: int) -> None:
        try:
            for _ in range(20):
                write_snapshot(path, states[number], table, source=source, tokens=number)
                state, tokens = read_snapshot(path, table, source=source)
                assert all((array == tokens).all() for array in state.values())
        except BaseException as error:  # handed to the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(model: xr.Model, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    shutil.copy(saved, tmp_path / "before")
    model.session().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert saved.read_bytes() != (tmp_path / "before").read_bytes()


@pytest.fixture(scope="module")
def accelerated(bundle_of: Callable[[Case, str], Path]) -> xr.Model:
    return xr.load(bundle_of(BY_NAME["large-plain"], "coreml"), threads=1)


def test_stabilizers_less_a_constant_are_stored_with_it(accelerated: xr.Model, tmp_path: Path) -> None:
    session, path = accelerated.session(), tmp_path / "state"
    session.prefill([1, 2, 3])
    session.save(path)
    stored, seen = load_file(path), session.state
    for row in accelerated.manifest.state:
        if row.offset:
            np.testing.assert_allclose(stored[f"{row.name}.offset"], [row.offset])
            np.testing.assert_allclose(
                stored[row.name] + stored[f"{row.name}.offset"][:, None], seen[row.name], rtol=1e-6
            )
    again = accelerated.session()
    again.load(path)
    assert np.array_equal(session.step(5), again.step(5))


def test_an_offset_of_another_bundle_is_added(accelerated: xr.Model, tmp_path: Path) -> None:
    """A snapshot means the same whatever its writer was short of."""
    session, path = accelerated.session(), tmp_path / "state"
    session.prefill([1, 2, 3])
    session.save(path)

    def moved(tensors: dict[str, Any], _: dict[str, str]) -> None:
        for name in [name for name in tensors if name.endswith(".offset")]:
            tensors[name] = tensors[name] - 1.5
            tensors[name.removesuffix(".offset")] = tensors[name.removesuffix(".offset")] + 1.5

    resave(path, moved)
    again = accelerated.session()
    again.load(path)
    np.testing.assert_allclose(again.step(5), session.step(5), atol=1e-4)


@pytest.mark.parametrize("tensor", ["blocks.0.C", "blocks.0.n", "blocks.9.m", "", "blocks.0.m"])
def test_an_offset_has_its_place_and_shape(tensor: str, accelerated: xr.Model, tmp_path: Path) -> None:
    session, path = accelerated.session(), tmp_path / "state"
    session.save(path)
    resave(path, lambda tensors, _: tensors.__setitem__(f"{tensor}.offset", np.zeros((1, 7), np.float32)))
    with pytest.raises(xr.StateError):
        session.load(path)


def with_data(path: Path, name: str, numbers: bytes) -> None:
    """The first numbers of a tensor of the file as these bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    begin = 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]
    path.write_bytes(content[:begin] + numbers + content[begin + len(numbers) :])


@pytest.mark.parametrize(
    ("scale", "number"),
    [
        (b"\0\0\0\0", b"\x00\x7c"),
        (b"\0\0\x80\x7f", b"\0\0"),
        (b"\0\0\x80\x3f", b"\x01\x7c"),
        (b"\xff\xff\x7f\x7f", b"\xff\x7b"),
    ],
    ids=["infinity times a scale of 0", "0 times an infinite scale", "a NaN that signals", "a product beyond float32"],
)
def test_halves_that_are_no_numbers_are_refused_without_a_warning(
    scale: bytes, number: bytes, model: xr.Model, tmp_path: Path
) -> None:
    session, path = model.session(), tmp_path / "state"
    session.save(path, dtype="float16")
    name = next(row.name for row in model.manifest.state if row.name.endswith(".C"))
    with_data(path, f"{name}.scale", scale)
    with_data(path, name, number)
    with pytest.raises(xr.StateError, match="expected a finite state"):
        session.load(path)


def test_infinity_in_the_other_form_is_refused_without_a_warning(
    bundle_of: Callable[[Case, str], Path], accelerated: xr.Model, tmp_path: Path
) -> None:
    capped, path = xr.load(bundle_of(BY_NAME["large-plain"], "cpu"), threads=1).session(), tmp_path / "state"
    capped.save(path)
    with_data(path, "blocks.0.n", b"\0\0\x80\x7f")
    with pytest.raises(xr.StateError, match="expected a finite state"):
        accelerated.session().load(path)


def test_an_offset_of_a_stabilizer_without_axes_has_no_place(tmp_path: Path) -> None:
    table, path = StateTable([StateSpec("a.m", ())]), tmp_path / "state"
    write_snapshot(path, table.initial(), table, source="", tokens=0)
    resave(path, lambda tensors, _: tensors.__setitem__("a.m.offset", np.zeros((1, 1), np.float32)))
    with pytest.raises(xr.StateError, match=r"a difference at 'a\.m\.offset'"):
        read_snapshot(path, table, source="")
