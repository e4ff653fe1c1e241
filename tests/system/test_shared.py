"""What the tests share is made once, whole, and seen if it was changed."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..shared import CAN_SHARE, Shared


def write(folder: Path, text: str = "one") -> None:
    folder.mkdir()
    (folder / "file").write_text(text)


@pytest.mark.skipif(not CAN_SHARE, reason="no locks: each worker has a place of its own")
def test_of_two_who_ask_one_makes(tmp_path: Path) -> None:
    made: list[Path] = []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)
        write(folder)

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda one: one.folder("name", slowly), (Shared(tmp_path), Shared(tmp_path))))
    assert folders[0] == folders[1] == tmp_path / "name"
    assert len(made) == 1
    assert made[0].name == "name"  # under its own name even while it is made
    assert (tmp_path / "name" / "file").read_text() == "one"


def test_what_failed_is_made_again(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        write(folder, "half")
        raise OSError

    shared = Shared(tmp_path)
    with pytest.raises(OSError):  # noqa: PT011  # the one above
        shared.folder("name", half)
    assert not (tmp_path / "name").exists()
    assert (shared.folder("name", write) / "file").read_text() == "one"


@pytest.mark.parametrize("how", ["other", "more", "less", "same bytes"])
def test_a_change_is_seen(how: str, tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    folder = shared.folder("name", write)
    assert shared.changed() == []
    match how:
        case "other":
            (folder / "file").write_text("another")
        case "more":
            (folder / "new").write_text("x")
        case "less":
            (folder / "file").unlink()
        case _:
            time.sleep(0.02)  # clocks of file systems tick
            (folder / "file").write_text("one")
    assert shared.changed() == [str(folder)]
