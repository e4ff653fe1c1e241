"""What onnxruntime-genai opens: a graph as it calls one, its settings, and the mark by which it reads a tokenizer.

    model.genai.onnx       the bundle's graph with all states in two tensors a layer, over the same weights
    genai_config.json      names, sizes, special tokens, sampling defaults
    tokenizer_config.json  only where genai gives the tokenizer.json the ids that it stands for; without it genai refuses the
                           tokenizer, and an app passes ids

The same bundle gives the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.layout import GENAI_CONFIG, GRAPH, TOKENIZER, TOKENIZER_CONFIG, compiled_name
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.opening import CPU, SPIN, open_graph, session_options

from ..passes.packed_states import PAST, PRESENT, PackStates, layers_of
from .base import Remark
from .genai_tokenizer import differences, not_read

GENAI_GRAPH = compiled_name(GRAPH, "genai")
ARCHITECTURE = "decoder"  # genai's word for a language model without more
MOST_TOKENS = 1 << 16  # of a generator that is not told: it holds 4 bytes for each
SEED, STEPS, FARTHEST = 11, 4, 1e-5  # the rounding of float32: both graphs run the same kernels
Run = Iterator[NDArray[np.float32]]


def genai_files(folder: Path, manifest: Manifest, longest: int, remark: Remark) -> dict[str, bytes]:
    """The files by name, of a folder with the bundle's graph and tokenizer; `remark` is told what genai does otherwise."""
    model = ir.load(folder / manifest.graph.file)
    PackStates(manifest.state, manifest.model.vocab_size or 0, never=not manifest.special_tokens.stop)(model)
    files = {
        GENAI_GRAPH: ir.serde.serialize_model(model).SerializeToString(deterministic=True),
        GENAI_CONFIG: _json(_settings(manifest, longest)),
    }
    document = (folder / TOKENIZER).read_bytes() if manifest.tokenizer.file else None
    reason = "the bundle has none" if document is None else not_read(document)
    if reason is None:
        files[TOKENIZER_CONFIG] = _json({"tokenizer_class": "PreTrainedTokenizerFast"})
    else:
        remark(f"onnxruntime-genai gets no tokenizer, as {reason}: pass it token ids")
    for line in differences(manifest, None if reason else document):
        remark(line)
    return files


def _settings(manifest: Manifest, longest: int) -> dict[str, Any]:
    special, vocabulary = manifest.special_tokens, manifest.model.vocab_size or 0
    stops = list(special.stop) or [vocabulary]  # none: an id more, of a logit that is never picked
    return {
        "model": {
            "type": ARCHITECTURE,
            "vocab_size": vocabulary + (not special.stop),
            "context_length": longest,
            "bos_token_id": 0 if special.bos is None else special.bos,
            "eos_token_id": stops,
            "pad_token_id": stops[0] if special.pad is None else special.pad,
            "decoder": {
                "session_options": {"session.intra_op.spin_duration_us": str(SPIN), "provider_options": []},
                "filename": GENAI_GRAPH,
                "hidden_size": manifest.model.width,
                "num_hidden_layers": len(layers_of(manifest.state)),
                "inputs": {"input_ids": manifest.graph.input, "past_key_names": f"{PAST}.%d.key"},
                "outputs": {"logits": manifest.graph.output, "present_key_names": f"{PRESENT}.%d.key"},
            },
        },
        "search": _search(manifest),
    }


def _search(manifest: Manifest) -> dict[str, Any]:
    """Sampling as the bundle's, so far as genai has it; everything said, as its own defaults are others."""
    sampling = manifest.sampling
    temperature = sampling.get("temperature", 0.0)
    return {
        "do_sample": temperature > 0,
        "temperature": temperature or 1.0,
        "top_k": sampling.get("top_k", 0),
        "top_p": sampling.get("top_p", 1.0),
        "repetition_penalty": sampling.get("repetition_penalty", 1.0),
        "max_length": MOST_TOKENS,
        "chunk_size": manifest.graph.chunk,
        "past_present_share_buffer": False,
    }


def check_genai(folder: Path, manifest: Manifest) -> None:
    """CheckpointError unless both graphs give the same logits, and states that go on alike, for a prompt and single tokens.

    genai's is run as genai does: the states of a call in the memory of the last one's.
    """
    vocabulary, chunk = manifest.model.vocab_size or 0, manifest.graph.chunk
    ids = np.random.default_rng(SEED).integers(0, vocabulary, chunk + STEPS)
    calls = [ids[:chunk], *ids[chunk:].reshape(STEPS, 1)]
    wanted = [logits.copy() for logits in _plain(folder / manifest.graph.file, manifest, calls)]
    for mine, theirs in zip(wanted, _packed(folder / GENAI_GRAPH, manifest, calls), strict=True):
        if not np.abs(mine - theirs[:vocabulary]).max() <= FARTHEST * np.ptp(mine):
            raise CheckpointError(
                "expected the graph for onnxruntime-genai to compute the bundle's outputs, got others; report this, and export "
                "for the target cpu"
            )


def _plain(graph: Path, manifest: Manifest, calls: list[NDArray[np.int64]]) -> Run:
    """Last logits of the bundle's graph after each call."""
    session, state = _open(graph, manifest), manifest.state.initial()
    for ids in calls:
        past = {row.input_name: state[row.name] for row in manifest.state}
        logits, *new = session.run(None, {manifest.graph.input: ids[None], **past})
        state = dict(zip(state, new, strict=True))
        yield logits.reshape(-1, logits.shape[-1])[-1]


def _packed(graph: Path, manifest: Manifest, calls: list[NDArray[np.int64]]) -> Run:
    """Those of genai's graph, its states written over those that it reads."""
    session = _open(graph, manifest)
    binding = session.io_binding()
    logits = np.zeros(session.get_outputs()[0].shape, np.float32)
    states = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()[1:]}
    places = {name: ("cpu", 0, np.float32, array.shape, array.ctypes.data) for name, array in states.items()}
    for name, place in places.items():
        binding.bind_input(name, *place)
        binding.bind_output(name.replace(PAST, PRESENT, 1), *place)
    binding.bind_output(manifest.graph.output, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
    for ids in calls:
        binding.bind_cpu_input(manifest.graph.input, np.ascontiguousarray(ids[None]))
        session.run_with_iobinding(binding)
        yield logits[0, 0]


def _open(graph: Path, manifest: Manifest) -> Any:
    """Weights of float32 stay in the file, so that a large model needs no more memory than a small one."""
    return open_graph(graph, session_options(None, SPIN, mapped=not manifest.quantization), CPU)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
