"""What the runtime in TypeScript is held to: bundles, and what the Python runtime makes of them.

    python -m tests.web_fixtures FOLDER

FOLDER gets `bundles/NAME`, `snapshots/NAME.DTYPE`, and one JSON file for each kind of case. Numbers are float32, little-endian,
in base64; options have their names of Python.
"""

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime.graph_file import check_graph_file
from xlstm_edge_runtime.loading import open_model
from xlstm_edge_runtime.manifest import Manifest, read_manifest
from xlstm_edge_runtime.opening import Settings
from xlstm_edge_runtime.snapshot import read_snapshot
from xlstm_edge_runtime.text import StopMatcher
from xlstm_edge_runtime.tokenizer import HuggingFaceTokenizer

from .fuzz import mutate
from .oracles import tokenizers
from .oracles.cases import CASES
from .oracles.official import make_checkpoint
from .system.test_malformed import MANIFESTS, TEXTS

SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
# Checkpoint and options of export by the bundle's name.
BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "shipped-web": ("shipped", {"target": "web", "chunk": 64}),
    "shipped-cpu": ("shipped", {}),
    "shipped-int8": ("shipped", {"quantize": "int8"}),
    "shipped-web-int4": ("shipped", {"target": "web", "quantize": "int4", "method": "rtn"}),
    "shipped-openvino": ("shipped", {"target": "openvino", "chunk": 8}),
    "mixed": ("lm-mixed", {"chunk": 8}),
    "large": ("large-plain", {"chunk": 16, "all_logits": True}),
    "large-web": ("large-plain", {"target": "web", "chunk": 16}),
    "large-openvino": ("large-plain", {"target": "openvino", "chunk": 8}),
    "large-qnn": ("large-plain", {"target": "qnn", "chunk": 8}),
    "vectors": ("stack-mixed", {}),
}
GENERATIONS: list[dict[str, Any]] = [
    {"max_tokens": 64},
    {"max_tokens": 64, "temperature": 0.7, "seed": 1},
    {"max_tokens": 24, "temperature": 1.3, "seed": 2**53 - 1, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "penalty_window": 8,
    },
    {
        "max_tokens": 24,
        "temperature": 0.9,
        "seed": 6,
        "frequency_penalty": 0.5,
        "logit_bias": {3: 2.5, 7: -1.0},
        "banned": [5],
    },
    {"max_tokens": 12, "stop_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9], "temperature": 1.0, "seed": 9},
    {
        "max_tokens": 12,
        "min_tokens": 10,
        "stop_ids": list(range(30)),
        "temperature": 1.0,
        "seed": 9,
        "ignore_eos": True,
    },
    {"max_tokens": 0},
]
TEXTS_OF_MODEL: list[tuple[str, dict[str, Any]]] = [
    ("To be", {"max_tokens": 64, "temperature": 0.7, "seed": 1}),
    ("ROMEO.\n", {"max_tokens": 48}),
    ("ROMEO.\n", {"max_tokens": 64, "stop": ["\n\n", "the"], "temperature": 0.8, "seed": 4}),
    ("O naïve 你好 😀", {"max_tokens": 48, "temperature": 1.5, "seed": 3}),
    ("A", {"max_tokens": 64, "stop": [" and the", "nd", "QQQ"], "temperature": 1.0, "seed": 7}),
]
CHARACTERS = (
    "abcdefghij AZ09.,;:!?'\"-_\n\t\r  éßñ你好世界नमस्ते😀👩‍👩‍👧é\u00a0\u2003\u0085\u200b\ufeff\u2028\u1680\u3000İıſKΣς"  # noqa: RUF001  # odd on purpose
)


def numbers(array: Any) -> str:
    """float32 in base64."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def refused(call: Callable[[], object]) -> bool:
    """Whether it ends in an error of ours."""
    try:
        call()
    except xr.XlstmEdgeError:
        return True
    return False


Export = Callable[..., object]


def make_bundles(folder: Path, export: Export | None) -> None:
    """Every bundle, by `export(case, folder, **options)` where one is given."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as place:
        for name, (case, options) in BUNDLES.items():
            (export or partial(_export, Path(place)))(case, folder / name, **options)


def _export(place: Path, case: str, folder: Path, **options: Any) -> None:
    source = SHIPPED if case == "shipped" else place / case
    if not source.exists():
        make_checkpoint(next(c for c in CASES if c.name == case), source)
    xlstm_edge.export(source, folder, **options)


def model_cases(folder: Path) -> dict[str, Any]:
    """Logits, ids, snapshots and texts of each bundle."""
    cases = {}
    for name in BUNDLES:
        if name != "vectors":
            cases[name] = _model_case(folder, name)
    return cases


def _model_case(folder: Path, name: str) -> dict[str, Any]:
    model = xr.load(folder / "bundles" / name, threads=1, tuned=False)
    counts = (2 * model.chunk + 5, model.chunk + 1, 1, 1, 3)
    session = model.session()
    case: dict[str, Any] = {"counts": counts, "logits": _logits(session, counts)}
    if model.manifest.quantization:  # with activations that no kernel rounds
        exact = open_model(folder / "bundles" / name, model.manifest, None, Settings(threads=1, mapped=True))
        case["float logits"] = _logits(exact.session(), counts)
    for dtype in ("float32", "float16"):
        session.save(folder / "snapshots" / f"{name}.{dtype}", dtype=dtype)
        there = model.session()
        there.load(folder / "snapshots" / f"{name}.{dtype}")
        case[f"after {dtype}"] = numbers(there.prefill([6, 7]))
    case["generations"] = [_generation(model, options) for options in GENERATIONS]
    texts = TEXTS_OF_MODEL if model.manifest.tokenizer.kind != "none" else []
    case["texts"] = [_text(model, prompt, options) for prompt, options in texts]
    return case


def _logits(session: xr.Session, counts: Sequence[int]) -> list[str]:
    """After prompts of so many tokens, one after the other."""
    width = session.model.output_width
    return [numbers(session.prefill([i * 7 % width for i in range(count)])) for count in counts]


def _generation(model: xr.Model, options: dict[str, Any]) -> dict[str, Any]:
    events = list(model.session().generate([5, 17, 3], **options))
    finish = events[-1]
    assert isinstance(finish, xr.Finish)
    ids = [event.id for event in events if isinstance(event, xr.Token)]
    return {"options": options, "ids": ids, "reason": finish.reason, "stop_id": finish.stop_id}


def _text(model: xr.Model, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    events = list(xr.stream_text(model.session(), prompt, **options))
    finish = events[-1]
    assert isinstance(finish, xr.Finish)
    pieces = [event.text for event in events if isinstance(event, xr.Piece)]
    usage = finish.usage.prompt_tokens, finish.usage.generated_tokens
    return {"prompt": prompt, "options": options, "pieces": pieces, "reason": finish.reason, "usage": usage}


def moves(folder: Path) -> list[dict[str, Any]]:
    """Snapshots of one bundle, read by another of the same checkpoint."""
    found = []
    for reader, (checkpoint, _) in BUNDLES.items():
        for writer, (source, _) in BUNDLES.items():
            if checkpoint == source and reader != "vectors":
                session = xr.load(folder / "bundles" / reader, threads=1, tuned=False).session()
                session.load(folder / "snapshots" / f"{writer}.float32")
                found.append({"writer": writer, "reader": reader, "logits": numbers(session.prefill([6, 7]))})
    return found


def sampling_cases() -> Iterator[dict[str, Any]]:
    """Random options over random logits: ties, minus infinity and tiny temperatures among them."""
    rng = Random("sampling")
    for number in range(200):
        vocab, steps = rng.choice((1, 2, 7, 50, 300, 3000)), 12
        generator = np.random.default_rng(number)
        z = generator.standard_normal((steps, vocab)) * rng.choice((0.1, 3, 30))
        z = np.round(z, rng.choice((0, 1, 6))).astype(np.float32)
        z[:, :-1][generator.random((steps, vocab))[:, :-1] < rng.choice((0, 0.2))] = -np.inf
        options = sampling_options(rng, vocab)
        if options["banned"]:
            z[:, 0] = 0.5
        prompt = [rng.randrange(vocab) for _ in range(5)]
        sampler = xr.Sampler(xr.SamplingOptions(**options), vocab, prompt=prompt)
        ids = [sampler(row) for row in z]
        written = options | {"seed": str(options["seed"])}  # JSON's numbers hold no such integers for sure
        yield {"vocab": vocab, "options": written, "prompt": prompt, "logits": numbers(z), "ids": ids}


def sampling_options(rng: Random, vocab: int) -> dict[str, Any]:
    """Some of every option, its borders among them."""
    return {
        "seed": rng.randrange(2**64),
        "temperature": rng.choice((0.0, 1e-3, 0.5, 1.0, 1.7, 1e4)),
        "top_k": rng.choice((0, 1, 5, 60)),
        "top_p": rng.choice((1.0, 0.9, 0.3, 1e-9)),
        "min_p": rng.choice((0.0, 0.05, 1.0)),
        "repetition_penalty": rng.choice((1.0, 1.3)),
        "presence_penalty": rng.choice((0.0, -0.7)),
        "frequency_penalty": rng.choice((0.0, 0.1)),
        "penalty_window": rng.choice((0, 3, 64)),
        "logit_bias": {0: 2.5} if rng.random() < 0.3 else {},
        "banned": [vocab - 1] if vocab > 2 and rng.random() < 0.3 else [],
    }


def manifest_cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Manifests, good and spoiled, and whether Python refuses them."""
    rng = Random("manifests")
    texts = [(folder / "bundles" / name / "manifest.json").read_bytes() for name in BUNDLES]
    contents = [*texts, *(text for name, text in TEXTS.items() if "9 MB" not in name)]
    for name in MANIFESTS:
        document = json.loads((folder / "bundles" / "mixed" / "manifest.json").read_text())
        MANIFESTS[name](document)
        contents.append(json.dumps(document).encode())
    contents += [mutate.json_bytes(rng, json.loads(rng.choice(texts))) for _ in range(800)]
    contents += [json.dumps(json.loads(rng.choice(texts)) | {"sampling": _defaults(rng)}).encode() for _ in range(200)]
    for content in contents:
        yield {"content": base64.b64encode(content).decode(), "refused": refused(partial(_read_manifest, content))}


def _defaults(rng: Random) -> dict[str, Any]:
    """A bundle's sampling, at the borders of what is allowed and beyond."""
    values = {
        "temperature": (0, 1, 0.5, 1e4, 10001, -0.0, True, "1", None),
        "top_k": (0, 40, 40.0, 2**31 - 1, 2**31, -1),
        "top_p": (0, 1, 1e-300, 1.0000001),
        "min_p": (0, 1, 1.5),
        "repetition_penalty": (1, 1e-4, 0, 1e4),
        "penalty_window": (0, 2**20 - 1, 2**20, 64.0, False),
    }
    return {name: rng.choice(values[name]) for name in rng.sample(sorted(values), k=rng.randrange(3))}


def _read_manifest(content: bytes) -> None:
    try:
        Manifest.from_json(content.decode())
    except UnicodeDecodeError as error:
        raise xr.BundleError("expected UTF-8, got other bytes; as `read_manifest` says it") from error


def snapshot_cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Snapshots, spoiled, and whether Python refuses them."""
    rng, place = Random("snapshots"), folder / "spoiled"
    for _ in range(400):
        name = rng.choice(("mixed", "large", "large-openvino", "large-qnn"))
        manifest = read_manifest(folder / "bundles" / name)
        dtype = rng.choice(("float32", "float16"))
        original = (folder / "snapshots" / f"{name}.{dtype}").read_bytes()
        content = _other_numbers(rng, original) if rng.random() < 0.2 else mutate.safetensors(rng, original)
        place.write_bytes(content)
        gone = refused(partial(read_snapshot, place, manifest.state, source=manifest.source))
        yield {"bundle": name, "content": base64.b64encode(content).decode(), "refused": gone}
    place.unlink()


def _other_numbers(rng: Random, content: bytes) -> bytes:
    """Bytes behind the header changed: other numbers, some of them none."""
    data = bytearray(content)
    for _ in range(3):
        data[rng.randrange(8 + int.from_bytes(content[:8], "little"), len(data))] = rng.randrange(256)
    return bytes(data)


def graph_cases(folder: Path) -> Iterator[dict[str, Any]]:
    """Graph files, spoiled, and whether Python refuses them before onnxruntime sees them."""
    rng, place = Random("graphs"), folder / "spoiled.onnx"
    for _ in range(120):
        name = rng.choice(("mixed", "large", "large-openvino"))
        manifest = read_manifest(folder / "bundles" / name)
        content = (folder / "bundles" / name / "model.onnx").read_bytes()
        for _ in range(rng.choice((1, 4, 16))):
            content = mutate.protobuf(rng, content)
        place.write_bytes(content)
        gone = refused(partial(check_graph_file, place, manifest.files, manifest.graph.chunk))
        yield {"bundle": name, "content": base64.b64encode(content).decode(), "refused": gone}
    place.unlink()


def tokenizer_cases() -> Iterator[dict[str, Any]]:
    """Ids of texts, and texts of ids as they stream, for every kind of tokenizer and the shipped one."""
    rng = Random("tokenizers")
    kinds = {
        **tokenizers.KINDS,
        "Split before ByteLevel": _split,
        "Metaspace BPE": _metaspace,
        "runs of spaces": _spaces,
        "normalized words": _normalized,
    }
    documents = {name: json.loads(make().to_str()) for name, make in kinds.items()}
    documents["shipped"] = json.loads((SHIPPED / "tokenizer.json").read_text())
    for name, document in documents.items():
        tokenizer = HuggingFaceTokenizer(document)
        texts = [*tokenizers.TEXTS, *("".join(rng.choices(CHARACTERS, k=rng.randrange(30))) for _ in range(60))]
        texts += [f"a{mark}b <s> c<tool>d<|im_end|>  <seen>  café" for mark in ("", " ", "\n")]
        texts += ["".join(rng.choices((" ", "  ", "x", "cafe\u0301", "a cat", "<seen>"), k=12)) for _ in range(30)]
        encoded = [{"text": t, "ids": tokenizer.encode(t), "bare": tokenizer.encode(t, special=False)} for t in texts]
        streams = [_stream(rng, tokenizer, encoded) for _ in range(40)]
        yield {
            "name": name,
            "document": document,
            "begins": tokenizer.begins_texts,
            "texts": encoded,
            "streams": streams,
        }


def _split() -> Tokenizer:
    """Llama 3, Qwen: an expression of their own cuts the text."""
    tokenizer = tokenizers.byte_level()
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(f"{words}|{others}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _spaces() -> Tokenizer:
    """GPT-NeoX: runs of spaces are tokens that are found in the normalized text."""
    tokenizer = tokenizers.byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in (2, 3, 4, 8)])
    tokenizer.add_tokens([AddedToken("cafe\u0301", normalized=True)])
    return tokenizer


def _normalized() -> Tokenizer:
    """The same where a normalizer changes the words themselves."""
    tokenizer = tokenizers.byte_fallback()
    tokenizer.add_tokens([AddedToken("<seen>", normalized=True), AddedToken("a cat", normalized=True)])
    return tokenizer


def _metaspace() -> Tokenizer:
    """BPE over words that begin with a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=tokenizers.SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(tokenizers.CORPUS, trainer)
    return tokenizer


def _stream(rng: Random, tokenizer: HuggingFaceTokenizer, encoded: list[dict[str, Any]]) -> dict[str, Any]:
    size = tokenizer.vocab_size
    ids = list(rng.choice(encoded)["ids"]) if rng.random() < 0.4 else [rng.randrange(size + 3) for _ in range(60)]
    prompt = [rng.randrange(size) for _ in range(rng.randrange(5))]
    stream = tokenizer.stream(prompt)
    pieces = [stream.push(token) + (stream.settle() if token % 11 == 0 else "") for token in ids]
    return {"prompt": prompt, "ids": ids, "pieces": [*pieces, stream.flush()], "decoded": tokenizer.decode(ids)}


def stop_cases() -> Iterator[dict[str, Any]]:
    """Texts cut at random through stop strings that overlap."""
    rng = Random("stops")
    for _ in range(400):
        stops = ["".join(rng.choices("ab😀", k=rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
        matcher, pushes, shown = StopMatcher(stops), [], []
        for _ in range(rng.randrange(8)):
            pushes.append(("".join(rng.choices("ab😀", k=rng.randrange(5))), rng.random() < 0.8))
            shown.append(matcher.push(pushes[-1][0], visible=pushes[-1][1]))
        shown.append(matcher.flush())
        yield {"stops": stops, "pushes": pushes, "shown": shown, "hit": matcher.hit}


def main(folder: Path, export: Export | None = None) -> None:
    """All of it, whole or not at all."""
    place = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(place, ignore_errors=True)
    (place / "snapshots").mkdir(parents=True)
    make_bundles(place / "bundles", export)
    kinds: dict[str, Any] = {
        "models": model_cases(place),
        "moves": moves(place),
        "sampling": list(sampling_cases()),
        "manifests": list(manifest_cases(place)),
        "snapshots": list(snapshot_cases(place)),
        "graphs": list(graph_cases(place)),
        "tokenizers": list(tokenizer_cases()),
        "stops": list(stop_cases()),
        "versions": {"onnxruntime": onnxruntime.__version__},
    }
    for name, cases in kinds.items():
        (place / f"{name}.json").write_text(json.dumps(cases))
    shutil.rmtree(folder, ignore_errors=True)
    place.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
