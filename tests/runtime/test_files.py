"""Files and folders appear whole or not at all, replace nothing that was not there, and clean up after the dead."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xlstm_edge
from xlstm_edge_runtime import files
from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.files import atomic_file, atomic_folder

from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

PATHS = os.pathsep.join(str(SHIPPED.parent.parent / part) for part in (".", "exporters", "runtime"))


@pytest.fixture(params=["system call", "fallback"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in its place."""
    if request.param == "fallback":

        def refuse(_rule: str, _source: Path, _target: Path) -> None:
            raise OSError(files.errno.ENOSYS, "not here")

        monkeypatch.setattr(files, "_rename_with", refuse)
    return str(request.param)


def fill(folder: Path, text: str) -> None:
    (folder / "content").write_text(text)


def content(folder: Path) -> str:
    return (folder / "content").read_text()


def test_a_new_folder(tmp_path: Path, renames: str) -> None:
    with atomic_folder(tmp_path / "new") as folder:
        fill(folder, "one")
        assert not (tmp_path / "new").exists()
    assert content(tmp_path / "new") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_old_folder_is_replaced_only_if_asked(tmp_path: Path, renames: str) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "out"):
        pass
    with atomic_folder(tmp_path / "out", replace=True) as folder:
        fill(folder, "new")
    assert content(tmp_path / "out") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_what_appears_meanwhile_is_not_replaced(there: str, tmp_path: Path, renames: str) -> None:
    out = tmp_path / "out"

    def appear() -> None:
        if there == "file":
            out.write_text("mine")
        elif there == "dangling link":
            out.symlink_to(tmp_path / "nowhere")
        else:
            out.mkdir()
            if there == "folder":
                fill(out, "mine")

    with pytest.raises(FileExistsError), atomic_folder(out) as folder:  # noqa: PT012  # its end raises
        fill(folder, "ours")
        appear()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if there == "dangling link":
        assert out.readlink() == tmp_path / "nowhere"
    elif there == "file":
        assert out.read_text() == "mine"
    else:
        assert {path.name: path.read_text() for path in out.iterdir()} == (
            {"content": "mine"} if there == "folder" else {}
        )


def test_what_takes_the_place_of_the_old_folder_is_kept(tmp_path: Path, renames: str) -> None:
    """Somebody else replaced the old folder while the new one was written."""
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with pytest.raises(FileExistsError), atomic_folder(out, replace=True) as folder:  # noqa: PT012  # its end raises
        fill(folder, "ours")
        out.rename(tmp_path / "moved")
        out.mkdir()
        fill(out, "theirs")
    assert content(out) == "theirs"
    assert content(tmp_path / "moved") == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_put_into_the_old_folder_meanwhile_is_kept(tmp_path: Path, renames: str) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def check(folder: Path) -> None:
        if any(folder.iterdir()):
            raise InputError("expected an empty folder, got more; look")

    with pytest.raises(InputError), atomic_folder(out, replace=True, check=check) as folder:  # noqa: PT012  # its end raises
        fill(folder, "ours")
        (out / "notes.txt").write_text("mine")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_what_must_not_be_replaced_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def check(_folder: Path) -> None:
        raise InputError("expected something else, got this; look")

    entered = False
    with pytest.raises(InputError), atomic_folder(tmp_path / "out", replace=True, check=check):
        entered = True
    assert not entered
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:  # noqa: PT012
        fill(folder, "half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from xlstm_edge_runtime.files import atomic_file, atomic_folder
with {kind}(sys.argv[1]) as it:
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(kind: str, tmp_path: Path) -> None:
    """The living and the dead write beside each other, to other names in the same folder."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD.format(kind=kind), tmp_path / name],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PATHS},
        )
        for name in ("dead", "living")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    writers[0].kill()
    writers[0].wait()
    foreign = tmp_path / ".mine.partial"
    foreign.write_text("not ours")
    with atomic_file(tmp_path / "third") as file:
        file.write(b"x")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if name.startswith(".dead")] == []
    assert len([name for name in names if name.startswith(".living")]) == 1
    assert ".mine.partial" in names
    writers[1].kill()
    writers[1].wait()
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()


def test_the_lock_is_on_what_is_written(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        files.remove_leftovers(tmp_path)
        assert folder.is_dir()


def export(case: Case, checkpoint_of: Callable[[Case], Path], out: Path, command: Command, *words: str) -> int:
    return command("export", checkpoint_of(case), "-o", out, *words).code


def test_force_keeps_what_is_not_the_bundle_s(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path, command: Command
) -> None:
    case, out = BY_NAME["lm-five-heads"], tmp_path / "out"
    assert export(case, checkpoint_of, out, command) == 0
    (out / "tuned").mkdir()
    (out / "tuned" / "tuned.json").write_text("{}")
    assert export(case, checkpoint_of, out, command, "--force") == 0
    assert not (out / "tuned").exists()
    for place in ("notes.txt", "tuned/notes.txt"):
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text("mine")
        before = (out / "manifest.json").read_text()
        assert_one_sentence(command("export", checkpoint_of(case), "-o", out, "--force"), 2)
        assert (out / place).read_text() == "mine"
        assert (out / "manifest.json").read_text() == before
        (out / place).unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_no_folder_that_is_no_bundle(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path, command: Command
) -> None:
    case = BY_NAME["lm-five-heads"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        assert_one_sentence(command("export", checkpoint_of(case), "-o", tmp_path / name, "--force"), 2)
        assert_one_sentence(command("export", checkpoint_of(case), "-o", tmp_path / name), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "link"]


def test_of_two_exports_to_one_path_one_succeeds(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """Both begin while nothing is there."""
    words = ["-m", "xlstm_edge", "export", str(checkpoint_of(BY_NAME["lm-five-heads"])), "-o", str(tmp_path / "out")]
    both = [
        subprocess.Popen(
            [sys.executable, *words], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PATHS}
        )
        for _ in range(2)
    ]
    results = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(code for _, code in results) == [0, 2], results
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    list(xlstm_edge.verify(tmp_path / "out"))


def test_a_bundle_in_the_hugging_face_cache(bundle_of: Callable[[Case, str], Path], tmp_path: Path) -> None:
    """models--NAME/snapshots/REVISION holds links into models--NAME/blobs; no other link is followed."""
    repository = tmp_path / "models--me--tiny"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(bundle_of(BY_NAME["lm-mixed"], "cpu").iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert [check.name for check in xlstm_edge.verify(snapshot)]
    assert xlstm_edge.load(snapshot).session().step(3).shape == (97,)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((snapshot / "model.onnx").read_bytes())
    for target in (elsewhere, Path("../../../elsewhere"), blobs / ".." / ".." / "elsewhere"):
        (snapshot / "model.onnx").unlink()
        (snapshot / "model.onnx").symlink_to(target)
        with pytest.raises(xlstm_edge.XlstmEdgeError, match=r"model\.onnx"):
            xlstm_edge.load(snapshot)


@pytest.fixture
def impatient() -> Iterator[None]:
    """A call that blocks fails the test instead of holding all of them up."""

    def late(*_: object) -> None:
        raise AssertionError("it blocks")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
def test_a_pipe_in_the_place_of_a_file_does_not_block(
    bundle_of: Callable[[Case, str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = tmp_path / "bundle"
    for name in ("manifest.json", "vectors.json", "model.onnx", "model.onnx.data"):
        subprocess.run(["cp", "-r", bundle_of(BY_NAME["lm-mixed"], "cpu"), bundle], check=True)
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        begin = time.monotonic()
        with pytest.raises(xlstm_edge.XlstmEdgeError):
            xlstm_edge.load(bundle)
        assert command("verify", bundle).code in (1, 2)
        assert time.monotonic() - begin < 5
        subprocess.run(["rm", "-r", bundle], check=True)
