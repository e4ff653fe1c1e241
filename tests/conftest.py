"""Shared fixtures: checkpoints and bundles of every parity case, each made once a session."""

import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import xlstm_edge
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_runtime import Model, load

from .command import Command
from .oracles.cases import CASES, Case, large
from .oracles.official import make_checkpoint

torch.set_num_threads(1)
SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
BY_NAME = {case.name: case for case in CASES}


def sequence_for(case: Case, length: int, seed: int = 3) -> NDArray[np.generic]:
    """Random ids (T,), or standard normal float32 vectors (T, D)."""
    rng = np.random.default_rng(seed)
    if "vocab_size" in case.config:
        return rng.integers(0, case.config["vocab_size"], length)
    return rng.standard_normal((length, case.config["embedding_dim"])).astype(np.float32)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """Case -> its checkpoint folder."""

    @cache
    def make(case_name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the official packages warn about each other
            return make_checkpoint(BY_NAME[case_name], tmp_path_factory.mktemp(case_name))

    return lambda case: make(case.name)


@pytest.fixture(scope="session")
def opened(checkpoint_of: Callable[[Case], Path]) -> Callable[[Case], Checkpoint]:
    """Case -> its opened checkpoint."""
    return lambda case: open_checkpoint(checkpoint_of(case))


@pytest.fixture(scope="session")
def bundle_of(
    checkpoint_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case, str], Path]:
    """Case and target -> its bundle folder."""

    @cache
    def make(case_name: str, target: str) -> Path:
        out = tmp_path_factory.mktemp("bundles") / f"{case_name}-{target}"
        chunk = None if TARGETS[target].static else 16
        xlstm_edge.export(checkpoint_of(BY_NAME[case_name]), out, target=target, chunk=chunk)
        return out

    return lambda case, target: make(case.name, target)


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
def int4_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> a bundle in int4: `shipped`, or `deep` of 24 random blocks, whose outputs rounding alone moves far."""
    folder = tmp_path_factory.mktemp("int4")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            case = Case("deep", "xlstm_large", large(64, 24, 4, 300, use_bias=True))
            source = make_checkpoint(case, folder / "checkpoint") if name == "deep" else SHIPPED
            xlstm_edge.export(source, folder / name, quantize="int4", method="rtn")
        return folder / name

    return make


@pytest.fixture(scope="session")
def mixed_bundle(checkpoint_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 with the default chunk, mLSTM and sLSTM blocks."""
    folder = tmp_path_factory.mktemp("float") / "bundle"
    xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), folder)
    return folder


@pytest.fixture
def bundle(mixed_bundle: Path, tmp_path: Path) -> Path:
    """A good bundle to be spoiled."""
    return Path(shutil.copytree(mixed_bundle, tmp_path / "bundle"))
