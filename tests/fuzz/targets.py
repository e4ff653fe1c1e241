"""What is fuzzed: each reader of untrusted input, and what success must mean.

A target makes one mutated input and runs its reader. Success means: the same outputs as before, or a document that says
what it says in the closed terms of its reader (and says the same after being written again). Everything else is one
XlstmEdgeError; whatever else comes out is a fault.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

from xlstm_edge import facade
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.recipe import read_recipe
from xlstm_edge_runtime import layout, load, rates, tune, tuning
from xlstm_edge_runtime.errors import VerificationError
from xlstm_edge_runtime.layout import MANIFEST, VECTORS
from xlstm_edge_runtime.manifest import Manifest, file_entry
from xlstm_edge_runtime.snapshot import read_snapshot, write_snapshot
from xlstm_edge_runtime.tokenizer import load_tokenizer
from xlstm_edge_runtime.vectors import read_vectors
from xlstm_edge_runtime.verify import verify_bundle

from ..conftest import SHIPPED
from ..oracles.cases import CASES
from ..oracles.official import make_checkpoint
from . import mutate

RECIPE = {
    "quantize": "int4", "method": "rtn", "block_size": 64, "chunk": 32, "all_logits": False, "head_bits": 8,
    "keep": {"blocks.0.*": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`run(rng)` reads one mutated input; `share` is how often it is chosen."""

    name: str
    share: float
    run: Callable[[Random], object]


class Corpus:
    """Healthy files, each made once, in a folder of the fuzzer's own."""

    def __init__(self, root: Path) -> None:
        cases = {case.name: case for case in CASES}
        self.root = root
        self.checkpoint = make_checkpoint(cases["lm-five-heads"], root / "plain")
        self.torch_checkpoint = make_checkpoint(cases["lm-sigmoid"], root / "torch")
        self.hub_checkpoint = make_checkpoint(cases["hf-plain"], root / "hub")
        self.bundle = root / "bundle"
        facade.export(self.checkpoint, self.bundle, chunk=8, quantize="int4", method="rtn")
        self.text = (self.bundle / MANIFEST).read_text()
        self.manifest = Manifest.from_json(self.text)
        rates.ROUNDS, rates.CHUNKS, rates.SPINS = 1, (4,), (20,)
        tune.tune_bundle(self.bundle)
        self.tuning = json.loads((self.bundle / layout.TUNING / layout.TUNING_RECORD).read_text())
        self.tokenizer = json.loads((SHIPPED / "tokenizer.json").read_text())
        self.tokenizer["model"]["vocab"] = dict(list(self.tokenizer["model"]["vocab"].items())[:300])
        self.tokenizer["model"]["merges"] = []
        table = self.manifest.state
        self.states = []
        for dtype in ("float32", "float16"):
            write_snapshot(root / dtype, table.initial(), table, source=self.manifest.source, tokens=3, dtype=dtype)
            self.states.append((root / dtype).read_bytes())
        self.graph = (self.bundle / self.manifest.graph.file).read_bytes()
        self.probe = np.arange(11) % load(self.bundle).output_width
        self.expected = load(self.bundle, threads=1, tuned=False).session().prefill(self.probe)

    def copy_of(self, name: str, source: Path) -> Path:
        """A working copy of a folder, made once and written over again and again."""
        place = self.root / "work" / name
        if not place.exists():
            shutil.copytree(source, place)
        return place


def targets(root: Path) -> list[Target]:
    """Every target over one corpus."""
    c = Corpus(root)
    return [
        Target("manifest", 38, lambda rng: manifest_text(c, rng)),
        Target("manifest of a bundle", 1, lambda rng: manifest_of_bundle(c, rng)),
        Target("vectors", 12, lambda rng: vectors(c, rng)),
        Target("tuning", 8, lambda rng: tuned(c, rng)),
        Target("recipe", 6, lambda rng: recipe(c, rng)),
        Target("snapshot", 16, lambda rng: snapshot(c, rng)),
        Target("config", 9, lambda rng: config(c, rng)),
        Target("safetensors", 8, lambda rng: weights(c, rng)),
        Target("torch archive", 1.3, lambda rng: torch_archive(c, rng)),
        Target("tokenizer", 0.5, lambda rng: tokenizer(c, rng)),
        Target("graph", 0.2, lambda rng: graph(c, rng)),
    ]


def manifest_text(c: Corpus, rng: Random) -> None:
    """What is accepted says the same after being written again."""
    content = mutate.json_bytes(rng, json.loads(c.text)).decode("utf-8", "replace")
    read = Manifest.from_json(content)
    assert Manifest.from_json(read.to_json()) == read


def manifest_of_bundle(c: Corpus, rng: Random) -> None:
    """A bundle that loads computes what it computed, but for the rounding of kernels in calls of another length."""
    place = c.copy_of("manifest", c.bundle)
    (place / MANIFEST).write_bytes(mutate.json_bytes(rng, json.loads(c.text)))
    model = load(place, threads=1, tuned=False)
    probe = c.probe[c.probe < model.output_width]
    allowed = 0.0 if model.chunk == c.manifest.graph.chunk else 0.02 * np.ptp(c.expected)
    assert np.abs(model.session().prefill(probe) - c.expected).max() <= allowed


def vectors(c: Corpus, rng: Random) -> None:
    """Read in closed terms, whatever they then say of the outputs."""
    place = c.copy_of("vectors", c.bundle)
    (place / VECTORS).write_bytes(mutate.json_bytes(rng, json.loads((c.bundle / VECTORS).read_text())))
    read_vectors(place, c.manifest)


def tuned(c: Corpus, rng: Random) -> None:
    """A tuning that is not as written is not used; never an error of its own."""
    place = c.copy_of("tuning", c.bundle)
    (place / layout.TUNING / layout.TUNING_RECORD).write_bytes(mutate.json_bytes(rng, c.tuning))
    found = tuning.read_tuning(place, c.manifest)
    assert found is None or (1 <= found.chunk <= c.manifest.graph.chunk and type(found.threads) is int)


def recipe(c: Corpus, rng: Random) -> None:
    """TOML, and the options behind it."""
    path = c.root / "recipe.toml"
    path.write_bytes(toml_bytes(rng, mutate.document(rng, RECIPE)))
    read_recipe(path, {})


def toml_bytes(rng: Random, document: Any) -> bytes:
    """A document as TOML, as far as it goes."""
    lines = []
    for key, value in document.items() if isinstance(document, Mapping) else ():
        if isinstance(value, Mapping):
            inner = ", ".join(f"{json.dumps(str(k))} = {toml_value(v)}" for k, v in value.items())
            lines.append(f"{json.dumps(str(key))} = {{{inner}}}")
        else:
            lines.append(f"{json.dumps(str(key))} = {toml_value(value)}")
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return mutate.binary(rng, content) if rng.random() < 0.2 else content


def toml_value(value: Any) -> str:
    """As TOML writes it."""
    return "nan" if value is None else json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def snapshot(c: Corpus, rng: Random) -> None:
    """A state of the right names, shapes and finite numbers."""
    path = c.root / "mutated-state"
    path.write_bytes(mutate.safetensors(rng, rng.choice(c.states)))
    state, tokens = read_snapshot(path, c.manifest.state, source=c.manifest.source)
    assert tokens >= 0
    c.manifest.state.check(state)
    assert all(np.isfinite(array).all() for array in state.values())


def config(c: Corpus, rng: Random) -> None:
    """YAML and JSON configs; what opens has the dimensions of its tensors."""
    source, name = rng.choice(((c.checkpoint, "config.yaml"), (c.hub_checkpoint, "config.json")))
    place = c.copy_of(f"config-{name}", source)
    original = yaml.safe_load((source / name).read_text())
    if name.endswith("json"):
        content = mutate.json_bytes(rng, original)
    else:
        content = yaml.safe_dump(mutate.document(rng, original)).encode("utf-8", "replace")
        content = mutate.binary(rng, content) if rng.random() < 0.2 else content
    (place / name).write_bytes(content)
    open_checkpoint(place)


def weights(c: Corpus, rng: Random) -> None:
    """A safetensors checkpoint: what opens can be read, every tensor of its stated shape."""
    place = c.copy_of("weights", c.hub_checkpoint)
    name = "model.safetensors"
    (place / name).write_bytes(mutate.safetensors(rng, (c.hub_checkpoint / name).read_bytes()))
    read_all(place)


def torch_archive(c: Corpus, rng: Random) -> None:
    """The same for a torch file; nothing in it runs."""
    place = c.copy_of("archive", c.torch_checkpoint)
    (place / "model.pt").write_bytes(mutate.archive(rng, (c.torch_checkpoint / "model.pt").read_bytes()))
    read_all(place)


def read_all(place: Path) -> None:
    """Open a checkpoint and load each tensor."""
    for weight in open_checkpoint(place).weights.values():
        assert weight.load().shape == weight.shape


def tokenizer(c: Corpus, rng: Random) -> None:
    """What loads encodes, decodes and streams any id."""
    path = c.root / "tokenizer.json"
    path.write_bytes(mutate.json_bytes(rng, c.tokenizer))
    read = load_tokenizer("huggingface", path)
    stream = read.stream()
    for token in [*read.encode("To be, or not"), 0, 299, 10**6]:
        stream.push(token)
    stream.flush()


def graph(c: Corpus, rng: Random) -> None:
    """A graph that was changed together with its hash either proves itself or is refused."""
    place = c.copy_of("graph", c.bundle)
    (place / "model.onnx").write_bytes(mutate.protobuf(rng, c.graph))
    document = json.loads(c.text)
    entry = file_entry(place / "model.onnx")
    document["files"]["model.onnx"] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (place / MANIFEST).write_text(json.dumps(document))
    shutil.rmtree(place / layout.TUNING, ignore_errors=True)
    for _ in verify_bundle(place, threads=1):
        pass
    got = load(place, threads=1).session().prefill(c.probe)
    if np.abs(got - c.expected).max() > 0.1 * np.ptp(c.expected):
        raise VerificationError(
            "expected a verified graph to compute the same, got another; never raised by the product"
        )


torch.set_num_threads(1)
