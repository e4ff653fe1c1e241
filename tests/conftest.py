"""Shared fixtures: checkpoints and bundles of every parity case, each made once a run."""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import xlstm_edge
from xlstm_edge_exporters import parts
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_runtime import Model, load

from .command import Command
from .oracles.cases import CASES, Case, large
from .oracles.official import make_checkpoint
from .shared import CAN_SHARE, Shared

torch.set_num_threads(1)
SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
BY_NAME = {case.name: case for case in CASES}


# Each test of these waits long for a process of its own: begun last, one of them would hold up the end of a run.
SLOW = {f"test_{name}.py" for name in ("boards", "oldest", "kill", "memory", "fuzz", "privacy", "hub", "web_runtime")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: a worker that has nothing left takes tests from the end of another's share."""
    items.sort(key=lambda item: item.path.name not in SLOW)


def sequence_for(case: Case, length: int, seed: int = 3) -> NDArray[np.generic]:
    """Random ids (T,), or standard normal float32 vectors (T, D)."""
    rng = np.random.default_rng(seed)
    if "vocab_size" in case.config:
        return rng.integers(0, case.config["vocab_size"], length)
    return rng.standard_normal((length, case.config["embedding_dim"])).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def traces_are_kept() -> Iterator[None]:
    """All of a run's, where the exporter keeps a few: a model is traced once for all files of a worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_trace", cache(parts._trace.__wrapped__))
        yield


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Folders that all workers of a run share; none of them may be changed."""
    base = tmp_path_factory.getbasetemp()
    one_of_several = CAN_SHARE and hasattr(request.config, "workerinput")
    folders = Shared((base.parent if one_of_several else base) / "shared")
    yield folders
    assert not folders.changed(), "a test changed what others read: copy it first"


@pytest.fixture(scope="session")
def checkpoint_of(shared: Shared) -> Callable[[Case], Path]:
    """Case -> its checkpoint folder."""

    def make(case: Case) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the official packages warn about each other
            return shared.folder(case.name, lambda folder: make_checkpoint(BY_NAME[case.name], folder))

    return make


@pytest.fixture(scope="session")
def opened(checkpoint_of: Callable[[Case], Path]) -> Callable[[Case], Checkpoint]:
    """Case -> its opened checkpoint."""
    return lambda case: open_checkpoint(checkpoint_of(case))


@pytest.fixture(scope="session")
def export_of(checkpoint_of: Callable[[Case], Path], shared: Shared) -> Callable[..., Path]:
    """Name of a case, or `shipped`, and options of `export` -> the bundle; a test that changes it copies it."""

    def make(name: str, **options: Any) -> Path:
        source = SHIPPED if name == "shipped" else checkpoint_of(BY_NAME[name])
        choice = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:12]
        return shared.folder(f"{name}-{choice}", lambda folder: xlstm_edge.export(source, folder, **options))

    return make


@pytest.fixture(scope="session")
def bundle_of(export_of: Callable[..., Path]) -> Callable[[Case, str], Path]:
    """Case and target -> its bundle folder."""
    return lambda case, target: export_of(case.name, target=target, chunk=1 if TARGETS[target].static else 16)


@pytest.fixture(scope="session")
def model_of(bundle_of: Callable[[Case, str], Path]) -> Callable[[Case, str], Model]:
    """Case and target -> its loaded bundle."""

    @cache
    def make(case_name: str, target: str) -> Model:
        return load(bundle_of(BY_NAME[case_name], target), threads=1)

    return lambda case, target: make(case.name, target)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line."""
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="session")
def int4_bundle(export_of: Callable[..., Path], shared: Shared) -> Callable[[str], Path]:
    """Name -> a bundle in int4: `shipped`, or `deep` of 24 random blocks, whose outputs rounding alone moves far."""
    options = {"quantize": "int4", "method": "rtn"}
    case = Case("deep", "xlstm_large", large(64, 24, 4, 300, use_bias=True))

    def make(name: str) -> Path:
        if name == "shipped":
            return export_of(name, **options)
        source = shared.folder(name, lambda folder: make_checkpoint(case, folder))
        return shared.folder(f"{name}-int4", lambda folder: xlstm_edge.export(source, folder, **options))

    return make


@pytest.fixture(scope="session")
def mixed_bundle(export_of: Callable[..., Path]) -> Path:
    """float32 with the default chunk, mLSTM and sLSTM blocks."""
    return export_of("lm-mixed")


@pytest.fixture(scope="session")
def shipped_bundle(export_of: Callable[..., Path]) -> Path:
    """The shipped checkpoint in float32."""
    return export_of("shipped")


@pytest.fixture
def bundle(mixed_bundle: Path, tmp_path: Path) -> Path:
    """A good bundle to be spoiled."""
    return Path(shutil.copytree(mixed_bundle, tmp_path / "bundle"))
