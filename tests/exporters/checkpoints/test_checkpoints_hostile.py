"""Hostile checkpoints: files made to run code, to hang, to eat memory, to write to the terminal. One sentence each."""

import codecs
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_runtime.errors import CheckpointError

from ...command import Command, assert_one_sentence
from ...conftest import BY_NAME
from ...damaged_checkpoints import (
    EMBEDDING,
    EMPTY,
    HEAD,
    NORM,
    Spoil,
    add,
    as_json,
    device,
    edit_config,
    edit_tensors,
    header,
    index,
    more_yaml,
    only_yaml,
    pipe,
    raw_file,
    torch_file,
)
from ...oracles.cases import Case


def unpacked(folder: Path) -> None:
    """300 kB that unpack to 300 MB."""
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + b"0" * 300_000_000)
        archive.writestr("m/version", "3")


class Chain:
    """Unpickling this doubles a few bytes again and again."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, str]]:
        return (codecs.encode, (Chain(self.length - 1) if self.length else "x", "hex" if self.length else "latin1"))


class Memory:
    """Unpickling this asks for two gigabytes."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return (bytearray, (2_000_000_000,))


NINES = "xlstm_block_stack.blocks.9000000000.xlstm.mlstm_cell.igate.weight"
NAMES = ",".join(["x"] * 9)
ALIASES = f"a0: &a0 [{NAMES}]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 300)}]}}\n" for i in range(1, 9))
REFERENCES = "".join(f"r{i}: [" + ",".join([f'"${{r{i + 1}}}"'] * 50) + "]\n" for i in range(15))
CHAIN = pickle.dumps(Chain(28), 2)
PICKLED_MEMORY = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R."


MANY = dict.fromkeys(range(60000))


def within_itself() -> dict[Any, Any]:
    """A mapping of many entries, a hundred of which are the mapping itself."""
    mapping: dict[Any, Any] = {str(i): None for i in range(60_000)}
    return mapping | {f"s{i}": mapping for i in range(100)} | {"own": mapping}


def zipped(folder: Path) -> bytes:
    torch.save(load_file(folder / "model.safetensors"), folder / "whole.pt")
    content = (folder / "whole.pt").read_bytes()
    (folder / "whole.pt").unlink()
    return content


# Each answers within a second, in one sentence, whatever it was made to cost.
HOSTILE: dict[str, tuple[Spoil, str]] = {
    "a day that is none": (more_yaml("date: 2001-99-99\n"), "valid yaml"),
    "a timestamp that is none": (more_yaml('x: !!timestamp "a"\n'), "valid yaml"),
    "an empty integer": (more_yaml('x: !!int ""\n'), "valid yaml"),
    "a flag that is none": (more_yaml('x: !!bool "maybe"\n'), "valid yaml"),
    "an object": (more_yaml("x: !!python/object/apply:os.getcwd []\n"), "valid yaml"),
    "bytes": (more_yaml('x: !!binary "aaaa"\n'), "bytes"),
    "5,000 digits in yaml": (more_yaml("seed: " + "9" * 5000 + "\n"), "5000 characters"),
    "hexadecimal digits": (more_yaml("seed: 0x" + "f" * 30000 + "\n"), "30002 characters"),
    "base 60": (more_yaml("seed: 1" + ":59" * 9000 + "\n"), "characters"),
    "5,000 digits in json": (as_json(lambda text: text[:-1] + ', "seed": ' + "9" * 5000 + "}"), "valid json"),
    "beyond 64 bits": (as_json(lambda text: text[:-1] + ', "seed": ' + "9" * 50 + "}"), "64 bits"),
    "deep json": (as_json(lambda text: "[" * 100_000), "valid json"),
    "deep yaml": (only_yaml("{a: " * 9000), "valid yaml"),
    "much yaml": (only_yaml("a: 1\n" * 100_000), "at most"),
    "no utf-8": (lambda f: (f / "config.yaml").write_bytes(b"a: \xff"), "valid yaml"),
    "aliases that multiply": (more_yaml(ALIASES), "aliases"),
    "aliases in a setting": (
        lambda f: only_yaml(ALIASES + (f / "config.yaml").read_text().replace("num_blocks: 3", "num_blocks: *a9"))(f),
        "aliases",
    ),
    "merge keys that multiply": (only_yaml(MERGES), "multiply"),
    "an alias of itself": (only_yaml("a: &a [*a]\n"), "aliases"),
    "references that multiply": (
        lambda f: only_yaml(
            (f / "config.yaml").read_text().replace("slstm_at:\n- 1\n", "slstm_at: ${r0}\n") + REFERENCES
        )(f),
        "slstm_at",
    ),
    "text that multiplies": (edit_config(num_blocks="${a}${a}", a="${b}${b}" * 90, b="${a}${a}" * 90), "num_blocks"),
    "a reference to itself": (edit_config(num_blocks="${num_blocks}"), "circle"),
    "lists that refer to themselves": (edit_config(slstm_at=["${slstm_at}"]), "circle"),
    "the environment": (edit_config(num_blocks="${oc.env:BLOCKS}"), "outside"),
    "a reference to nothing": (edit_config(num_blocks="${sizes.blocks}"), "sizes.blocks"),
    "a pipe for a config": (pipe("config.yaml"), "regular file"),
    "a pipe for weights": (pipe("model.safetensors"), "regular file"),
    "a device for weights": (device, "regular file"),
    "a folder for a config": (lambda f: ((f / "config.yaml").unlink(), (f / "config.yaml").mkdir()), "regular file"),
    "a name too long for files": (index({NORM: "x" * 5000 + ".safetensors"}), "too long"),
    "a name with a null": (index({NORM: "x\0.safetensors"}), "x\\x00"),
    "an escape sequence": (index({NORM: "\x1b[31m\n.safetensors"}), "\\x1b[31m\\n"),
    "an index of nothing": (index({}), "empty weight_map"),
    "an index of a list": (index([NORM]), "weight_map"),
    "an index of itself": (index({NORM: "model.safetensors.index.json"}), "do not trust"),
    "an index of the folder above": (index({NORM: ".."}), "do not trust"),
    "a stride of 0": (
        torch_file(lambda t: t | {EMBEDDING: torch.zeros(1, 1).expand(10**7, 10**6)}),
        "hold their numbers",
    ),
    "a stride of 0 that fits": (torch_file(lambda t: t | {EMBEDDING: torch.zeros(1, 64).expand(97, 64)}), EMBEDDING),
    "a tensor without memory": (torch_file(lambda t: t | {EMBEDDING: torch.empty(97, 64, device="meta")}), EMBEDDING),
    "a sparse tensor": (torch_file(lambda t: t | {EMBEDDING: torch.zeros(97, 64).to_sparse()}), EMBEDDING),
    "float8": (torch_file(lambda t: t | {EMBEDDING: t[EMBEDDING].to(torch.float8_e4m3fn)}), "float8_e4m3fn"),
    "int8 head": (torch_file(lambda t: t | {HEAD: t[HEAD].to(torch.int8)}), "int8"),
    "float8 in safetensors": (edit_tensors(lambda t: t.update({NORM: t[NORM].to(torch.float8_e5m2)})), "F8_E5M2"),
    "complex": (torch_file(lambda t: t | {NORM: t[NORM].to(torch.complex64)}), "complex64"),
    "bitsandbytes": (add("xlstm_block_stack.blocks.0.xlstm.proj_up.weight.absmax", 4), "quantized"),
    "gptq": (add("xlstm_block_stack.blocks.0.xlstm.proj_up.qweight", 4), "quantized"),
    "adapters": (add("xlstm_block_stack.blocks.0.xlstm.proj_up.lora_A.default.weight", 2), "merge"),
    "block nine billion": (add(NINES, 2), "9000000000"),
    "block of 5,000 digits": (add(NINES.replace("9000000000", "9" * 5000), 2), "512 characters"),
    "block 007": (add(NORM.replace(".0.", ".007."), 64), "'007'"),
    "a gap between blocks": (
        edit_tensors(lambda t: t.update({k.replace(".2.", ".3."): t.pop(k) for k in list(t) if ".2." in k})),
        "'3'",
    ),
    "a long name": (torch_file(lambda t: t | {"x\n\x1b" * 9000: torch.ones(2)}), "512 characters"),
    "a name that patterns dwell on": (torch_file(lambda t: t | {"blocks.0." * 40_000 + "x": torch.ones(2)}), "512"),
    "a name that patterns dwell on more": (
        torch_file(lambda t: t | {"blocks.a.0." * 8000 + "x": torch.ones(2)}),
        "512",
    ),
    "a mapping in a thousand places": (torch_file(lambda t: {f"k{i}": MANY for i in range(990)}), "not an xLSTM"),
    "a mapping in itself": (torch_file(lambda t: within_itself()), "not an xLSTM"),
    "a long key over many mappings": (
        torch_file(lambda t: {"A" * 900_000: {str(i): {} for i in range(990)}}),
        "not an xLSTM",
    ),
    "a setting that patterns dwell on": (
        as_json(lambda c: f'{{"learning_rate_{"a" * 300_000}{"dropout" * 40_000}": 1, {c[1:]}'),
        "a longer name",
    ),
    "no names": (torch_file(lambda t: dict(enumerate(t.values()))), "not an xLSTM"),
    "a list": (torch_file(lambda t: list(t.values())), "list"),
    "nothing": (torch_file(lambda t: {}), "not an xLSTM"),
    "an empty file": (raw_file(b""), "plain torch state dict"),
    "a missing memo": (raw_file(b"\x80\x02}q\x00h\x99."), "plain torch state dict"),
    "an empty stack": (raw_file(b"\x80\x0200."), "plain torch state dict"),
    "half an archive": (lambda f: raw_file(zipped(f)[:2000])(f), "plain torch state dict"),
    "an archive that unpacks": (unpacked, "plain torch state dict"),
    "two gigabytes in a pickle": (raw_file(PICKLED_MEMORY), "plain torch state dict"),
    "a chain of codecs": (raw_file(CHAIN), "plain torch state dict"),
    "a chain of codecs in an archive": (torch_file(lambda t: t | {"z": Chain(28)}), "plain torch state dict"),
    "two gigabytes in an archive": (torch_file(lambda t: t | {"z": Memory()}), "plain torch state dict"),
    "a header of 13,000 names": (header({f"a{i}": EMPTY for i in range(13_000)}), "and 12994 more"),
    "9,000 empty blocks": (
        header({f"blocks.{i}.xlstm.mlstm_cell.x": EMPTY for i in range(9000)}),
        "export the complete checkpoint",
    ),
    "a shape of 100,000 axes": (
        header(
            {
                "blocks.0.xlstm_norm.weight": EMPTY | {"shape": [0] * 100_000},
                "blocks.0.xlstm.mlstm_cell.x": EMPTY,
            }
        ),
        "100000 axes",
    ),
}


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A good checkpoint to be spoiled, alone in a folder with nothing else."""
    return Path(shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint"))


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are files elsewhere only")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoint(name: str, checkpoint: Path, command: Command) -> None:
    spoil, fragment = HOSTILE[name]
    spoil(checkpoint)
    begin = time.perf_counter()
    result = command("inspect", checkpoint)
    assert time.perf_counter() - begin < 3  # a second on a machine that has nothing else to do
    assert_one_sentence(result, 2)
    assert fragment in result.err
    assert len(result.err) < 1200
    assert result.err.strip().isprintable()


MEASURE = """
import resource, sys
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_runtime.errors import CheckpointError
open_checkpoint(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        open_checkpoint(path)
    except CheckpointError:
        pass
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(path, (after - before) / 1000)
"""


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are files elsewhere only")
def test_hostile_checkpoints_cost_no_memory(checkpoint: Path, tmp_path: Path) -> None:
    paths = []
    for number, (spoil, _) in enumerate(HOSTILE.values()):
        paths.append(shutil.copytree(checkpoint, tmp_path / str(number)))
        spoil(Path(paths[-1]))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(checkpoint), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,  # the error is looked at
    )
    assert result.returncode == 0, result.stderr
    costs = {line.split()[0]: float(line.split()[1]) for line in result.stdout.splitlines()}
    assert len(costs) == len(HOSTILE)
    assert max(costs.values()) < 200, max(costs, key=lambda path: costs[path])


@pytest.mark.parametrize("path", ["x" * 5000, "/dev/zero", "a\0b", "/dev/null"])
def test_paths_that_are_no_files(path: str, command: Command) -> None:
    with pytest.raises(CheckpointError, match="got"):
        open_checkpoint(path)
    if "\0" not in path:
        assert_one_sentence(command("inspect", path), 2)


def refusal(folder: Path) -> str | None:
    """What is said about it; None if it is read."""
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "yaml"])
def test_damaged_files_are_refused_or_read(form: str, checkpoint: Path) -> None:
    """Random damage: nothing but a checkpoint or one CheckpointError."""
    if form in ("zip", "legacy"):
        torch_file(dict, _use_new_zipfile_serialization=form == "zip")(checkpoint)
    names = {"safetensors": "model.safetensors", "yaml": "config.yaml"}
    path = checkpoint / names.get(form, "model.pt")
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(0, min(6000, len(bad)))) * (1 if rng.random() < 0.7 else -1)
            match rng.integers(0, 3):
                case 0:
                    bad[place] = int(rng.integers(0, 256))
                case 1:
                    del bad[place : place + int(rng.integers(1, 30))]
                case _:
                    bad[place:place] = bytes(rng.integers(0, 256, 3, np.uint8))
        path.write_bytes(bad)
        message = refusal(checkpoint)
        assert message is None or ("got" in message and ";" in message and message.isprintable())
