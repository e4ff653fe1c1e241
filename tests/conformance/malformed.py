# ruff: noqa: E501  # tables, a case a line
"""Cases of manifests, snapshots and files that are wrong, as edits of good ones, with the class of error that must come.

The verdict is stated here, case by case, and checked against the Python runtime when the files are written.
"""

import json
from pathlib import Path
from typing import Any

Case = dict[str, Any]
OPEN = {("files",), ("compiled",), ("quantization",), ("sampling",)}  # objects whose members may be missing
NULLABLE = {
    ("model", "vocab_size"), ("model", "context_length"), ("graph", "prompt"), ("tokenizer", "file"),
    ("special_tokens", "bos"), ("special_tokens", "pad"),
}  # fmt: skip
TYPES: dict[str, Any] = {"text": "7", "number": 7.5, "true": True, "list": [[]], "object": {"x": 1}, "null": None}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Paths and values of a document's members, of lists the first only."""
    members = list(document.items()) if isinstance(document, dict) else list(enumerate(document))[:1] if isinstance(document, list) else []  # fmt: skip
    found = []
    for key, value in members:
        found += [((*path, key), value), *places(value, (*path, key))]
    return found


def manifest_cases(manifests: dict[str, Path]) -> list[Case]:
    """Every member missing and of every other type, then named classes; `error` None: taken. `alone`: the text alone shows it."""
    cases = []
    for bundle, path in manifests.items():
        document = json.loads(path.read_text())
        for place, value in places(document):
            name = " ".join(map(str, place))
            if isinstance(place[-1], str) and place[:-1] not in OPEN:
                cases.append({"name": f"{name} missing", "remove": [list(place)]})
            cases += [
                {"name": f"{name} as {kind}", "set": [[list(place), other]]}
                for kind, other in TYPES.items()
                if _is_wrong(place, value, kind)
            ]
            if isinstance(value, dict) and place not in {("files",), ("compiled",)}:
                cases.append({"name": f"{name} with an unknown member", "set": [[[*place, "unknown"], 1]]})
        cases = [case if "bundle" in case else {"bundle": bundle, **case, "error": "bundle"} for case in cases]
    cases += [{"bundle": "capped", **case} for case in NAMED]
    return [{**case, "alone": case["error"] is not None and case["name"] not in BESIDE_THE_TEXT} for case in cases]


def _is_wrong(place: tuple[Any, ...], value: Any, kind: str) -> bool:
    """Whether a value of this kind is none of those that may stand there."""
    if kind == "null":
        return place not in NULLABLE
    if kind == "number" and (place[-1] in ("temperature", "initial", "offset") or "offset" in place):
        return place[-1] != "temperature"  # out of their range
    if place == ("sampling", "temperature") and kind == "number":
        return False
    same: dict[str, type | tuple[type, ...]] = {"text": str, "true": bool, "list": list, "object": dict}
    if kind in same and isinstance(value, same[kind]):  # another of the same kind: named cases
        return False
    return not (kind == "text" and place[-1] in ("tokenizer",))


ROW = ["state", "tensors", 0]


def renamed(name: str) -> list[list[Any]]:
    """A state row of another name."""
    return [
        [[*ROW, key], f"{start}{name}"] for key, start in (("name", ""), ("input", "past."), ("output", "present."))
    ]


# What the files or the graph show, not the manifest alone.
BESIDE_THE_TEXT = {
    "a state of no tensors", "a runtime of tomorrow", "another vocabulary than the graph's", "another input", "all logits of a graph that gives the last",
    "heads split otherwise than in the graph", "a file that is not there", "another hash of the graph", "another size of the graph",
}  # fmt: skip
NAMED: list[Case] = [
    {"name": "as it is", "set": [], "error": None},
    {"name": "another producer", "set": [[["producer"], "someone 1.0"]], "error": None},
    {"name": "defaults of sampling", "set": [[["sampling"], {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "penalty_window": 9}]], "error": None},
    {"name": "stop ids", "set": [[["special_tokens", "stop"], [0, 259]]], "error": None},
    {"name": "a bos token", "set": [[["special_tokens", "bos"], 1], [["special_tokens", "add_bos"], True]], "error": None},
    {"name": "no tokenizer", "set": [[["tokenizer", "kind"], "none"]], "error": None},
    {"name": "a length of context", "set": [[["model", "context_length"], 9007199254740992]], "error": None},
    {"name": "a smaller chunk", "set": [[["graph", "chunk"], 4]], "error": None},
    {"name": "a recipe", "set": [[["quantization"], {"recipe": {"quantize": "int4", "keep": {"x": 8}, "target_mb": 3, "chunk": 8, "all_logits": False}, "tensors": {"x": {"bits": 4, "block_size": 64}, "y": {"bits": 8, "block_size": 0}}}]], "error": None},
    {"name": "blanks around it", "replace": ["{", " \t\r\n{"], "error": None},
    {"name": "another format", "set": [[["format"], "onnx"]], "error": "bundle"},
    {"name": "the schema of tomorrow", "set": [[["schema"], 6]], "error": "bundle"},
    {"name": "the schema of yesterday", "set": [[["schema"], 4]], "error": "bundle"},
    {"name": "an unknown section", "set": [[["unknown"], {}]], "error": "bundle"},
    {"name": "a key twice", "replace": ["\"schema\": 5", "\"schema\": 5, \"schema\": 5"], "error": "bundle"},
    {"name": "a key twice, once escaped", "replace": ["\"schema\": 5", "\"schema\": 5, \"\\u0073chema\": 5"], "error": "bundle"},
    {"name": "a width with a fraction", "replace": ["\"width\": 16", "\"width\": 16.0"], "error": "bundle", "lenient": True},
    {"name": "a width with an exponent", "replace": ["\"width\": 16", "\"width\": 16e0"], "error": "bundle", "lenient": True},
    {"name": "NaN", "replace": ["\"width\": 16", "\"width\": NaN"], "error": "bundle"},
    {"name": "a number that begins with 0", "replace": ["\"width\": 16", "\"width\": 016"], "error": "bundle"},
    {"name": "a number in other digits", "replace": ["\"width\": 16", "\"width\": 0x10"], "error": "bundle"},
    {"name": "a comma at the end", "replace": ["\"schema\": 5", "\"schema\": 5,,"], "error": "bundle"},
    {"name": "a comment", "replace": ["{", "{/* */"], "error": "bundle"},
    {"name": "something behind it", "replace": ["{", "{}{"], "error": "bundle"},
    {"name": "half of a pair", "replace": ["\"producer\": \"", "\"producer\": \"\\ud800"], "error": "bundle"},
    {"name": "a line break in a text", "replace": ["\"producer\": \"", "\"producer\": \"\n"], "error": "bundle"},
    {"name": "an escape of a terminal", "replace": ["\"producer\": \"", "\"producer\": \"\\u001b[31m"], "error": "bundle"},
    {"name": "a producer of 101 characters", "set": [[["producer"], "x" * 101]], "error": "bundle"},
    {"name": "a producer of none", "set": [[["producer"], ""]], "error": "bundle"},
    {"name": "a version of one number", "set": [[["minimum_runtime", "onnxruntime"], "1"]], "error": "bundle"},
    {"name": "a version of words", "set": [[["minimum_runtime", "onnxruntime"], "1.x"]], "error": "bundle"},
    {"name": "a version that ends in a dot", "set": [[["minimum_runtime", "onnxruntime"], "1.17."]], "error": "bundle"},
    {"name": "a runtime of tomorrow", "set": [[["minimum_runtime", "onnxruntime"], "9.0"]], "error": "bundle"},
    {"name": "a source of capitals", "set": [[["source", "sha256"], "A" * 64]], "error": "bundle"},
    {"name": "a source of 63 digits", "set": [[["source", "sha256"], "a" * 63]], "error": "bundle"},
    {"name": "a width of 0", "set": [[["model", "width"], 0]], "error": "bundle"},
    {"name": "a width below 0", "set": [[["model", "width"], -16]], "error": "bundle"},
    {"name": "a width that no such files hold", "set": [[["model", "width"], 1000000]], "error": "bundle"},
    {"name": "a width beyond all bounds", "set": [[["model", "width"], 2147483649]], "error": "bundle"},
    {"name": "a vocabulary of 0", "set": [[["model", "vocab_size"], 0]], "error": "bundle"},
    {"name": "another vocabulary than the graph's", "set": [[["model", "vocab_size"], 261]], "error": "bundle"},
    {"name": "an unknown block", "set": [[["model", "blocks"], ["attention"]]], "error": "bundle"},
    {"name": "parameters beyond 2^53", "set": [[["model", "parameters"], 9007199254740994]], "error": "bundle"},
    {"name": "an unknown target", "set": [[["graph", "target"], "tpu"]], "error": "bundle"},
    {"name": "an opset of 0", "set": [[["graph", "opset"], 0]], "error": "bundle"},
    {"name": "a graph elsewhere", "set": [[["graph", "file"], "../model.onnx"]], "error": "bundle"},
    {"name": "a graph that is not listed", "set": [[["graph", "file"], "other.onnx"]], "error": "bundle"},
    {"name": "a hidden graph", "set": [[["graph", "file"], ".model.onnx"]], "error": "bundle"},
    {"name": "another input", "set": [[["graph", "input"], "tokens"]], "error": "bundle"},
    {"name": "a chunk of 0", "set": [[["graph", "chunk"], 0]], "error": "bundle"},
    {"name": "a chunk of 4097", "set": [[["graph", "chunk"], 4097]], "error": "bundle"},
    {"name": "all logits of a graph that gives the last", "set": [[["graph", "all_logits"], True]], "error": "bundle"},
    {"name": "a second graph that is not listed", "set": [[["graph", "prompt"], "prompt.onnx"]], "error": "bundle"},
    {"name": "a second graph for one token", "set": [[["graph", "chunk"], 1], [["graph", "prompt"], "model.onnx"]], "error": "bundle"},
    {"name": "an unknown tokenizer", "set": [[["tokenizer", "kind"], "pickle"]], "error": "bundle"},
    {"name": "a tokenizer without its file", "set": [[["tokenizer", "kind"], "huggingface"]], "error": "bundle"},
    {"name": "bytes with a file", "set": [[["tokenizer", "file"], "tokenizer.json"]], "error": "bundle"},
    {"name": "a tokenizer that is not listed", "set": [[["tokenizer"], {"kind": "huggingface", "file": "tokenizer.json"}]], "error": "bundle"},
    {"name": "a stop id beyond the vocabulary", "set": [[["special_tokens", "stop"], [260]]], "error": "bundle"},
    {"name": "a stop id below 0", "set": [[["special_tokens", "stop"], [-1]]], "error": "bundle"},
    {"name": "1025 stop ids", "set": [[["special_tokens", "stop"], [1] * 1025]], "error": "bundle"},
    {"name": "a bos beyond the vocabulary", "set": [[["special_tokens", "bos"], 260]], "error": "bundle"},
    {"name": "a seed among the defaults", "set": [[["sampling", "seed"], 1]], "error": "bundle"},
    {"name": "a ban among the defaults", "set": [[["sampling", "banned"], [1]]], "error": "bundle"},
    {"name": "a temperature below 0", "set": [[["sampling", "temperature"], -0.5]], "error": "bundle"},
    {"name": "a temperature of nothing", "set": [[["sampling", "temperature"], None]], "error": "bundle"},
    {"name": "a top-p of 0", "set": [[["sampling", "top_p"], 0]], "error": "bundle"},
    {"name": "a top-p of 1.5", "set": [[["sampling", "top_p"], 1.5]], "error": "bundle"},
    {"name": "a top-k of a half", "set": [[["sampling", "top_k"], 0.5]], "error": "bundle"},
    {"name": "a window of 2^20", "set": [[["sampling", "penalty_window"], 1048576]], "error": "bundle"},
    {"name": "a recipe of unknown members", "set": [[["quantization"], {"recipe": {"evil": 1}, "tensors": {"x": {"bits": 4, "block_size": 32}}}]], "error": "bundle"},
    {"name": "a recipe of other types", "set": [[["quantization"], {"recipe": {"chunk": "8"}, "tensors": {"x": {"bits": 4, "block_size": 32}}}]], "error": "bundle"},
    {"name": "a recipe that keeps 33 bits", "set": [[["quantization"], {"recipe": {"keep": {"x": 33}}, "tensors": {"x": {"bits": 4, "block_size": 32}}}]], "error": "bundle"},
    {"name": "nothing that is quantized", "set": [[["quantization"], {"recipe": {}, "tensors": {}}]], "error": "bundle"},
    {"name": "no recipe", "set": [[["quantization"], {"tensors": {"x": {"bits": 4, "block_size": 32}}}]], "error": "bundle"},
    {"name": "9 bits", "set": [[["quantization"], {"recipe": {}, "tensors": {"x": {"bits": 9, "block_size": 32}}}]], "error": "bundle"},
    {"name": "blocks of 8", "set": [[["quantization"], {"recipe": {}, "tensors": {"x": {"bits": 4, "block_size": 8}}}]], "error": "bundle"},
    {"name": "a compiled form of another name", "set": [[["compiled"], {"8GEN2": {"file": "model.8gen2.onnx", "provider": "qnn", "weights": "int8", "prompt": None}}]], "error": "bundle"},
    {"name": "a compiled form that is not listed", "set": [[["compiled"], {"8gen2": {"file": "model.8gen2.onnx", "provider": "qnn", "weights": "int8", "prompt": None}}]], "error": "bundle"},
    {"name": "a compiled form of any file", "set": [[["compiled"], {"8gen2": {"file": "model.onnx", "provider": "qnn", "weights": "int8", "prompt": None}}]], "error": "bundle"},
    {"name": "a compiled form for the CPU", "set": [[["compiled"], {"8gen2": {"file": "model.8gen2.onnx", "provider": "cpu", "weights": "int8", "prompt": None}}]], "error": "bundle"},
    {"name": "a state in float16", "set": [[["state", "dtype"], "float16"]], "error": "bundle"},
    {"name": "a state of another size", "set": [[["state", "bytes_per_session"], 1]], "error": "bundle"},
    {"name": "a state of no tensors", "set": [[["state", "tensors"], []], [["state", "bytes_per_session"], 0]], "error": "bundle"},
    {"name": "a tensor of the state twice", "replace": ["\"blocks.0.n\"", "\"blocks.0.C\""], "error": "bundle"},
    {"name": "a tensor like a path", "set": renamed("../C"), "error": "bundle"},
    {"name": "a tensor like a scale", "set": renamed("x.scale"), "error": "bundle"},
    {"name": "a tensor like an offset", "set": renamed("x.offset"), "error": "bundle"},
    {"name": "a normalizer without its memory", "set": renamed("x.C"), "error": "bundle"},
    {"name": "a tensor through another input", "set": [[[*ROW, "input"], "past.x"]], "error": "bundle"},
    {"name": "a tensor through another output", "set": [[[*ROW, "output"], "present.x"]], "error": "bundle"},
    {"name": "a start value of 1", "set": [[[*ROW, "initial"], 1]], "error": "bundle"},
    {"name": "a start value of a stabilizer", "set": [[[*ROW, "initial"], -1e30]], "error": "bundle"},
    {"name": "an offset of a memory", "set": [[[*ROW, "offset"], [0.5]]], "error": "bundle"},
    {"bundle": "mixed", "name": "an offset of split heads", "set": [[["state", "tensors", 8, "head_splits"], 2], [["state", "tensors", 8, "offset"], [0.5] * 4]], "error": "bundle"},
    {"name": "heads split into 0", "set": [[[*ROW, "head_splits"], 0]], "error": "bundle"},
    {"name": "heads split into 3", "set": [[[*ROW, "head_splits"], 3]], "error": "bundle"},
    {"name": "heads split otherwise than in the graph", "set": [[[*ROW, "head_splits"], 2]], "error": "bundle"},
    {"name": "an axis of 0", "set": [[[*ROW, "shape", 0], 0]], "error": "bundle"},
    {"name": "nine axes", "set": [[[*ROW, "shape"], [1, 1, 1, 1, 1, 1, 1, 1, 1]]], "error": "bundle"},
    {"name": "a state beyond 2^53 bytes", "set": [[[*ROW, "shape"], [2147483648, 2147483648, 2147483648]]], "error": "bundle"},
    {"name": "a file elsewhere", "set": [[["files", "../x"], {"bytes": 0, "sha256": "0" * 64}]], "error": "bundle"},
    {"name": "a file in a folder", "set": [[["files", "a/b"], {"bytes": 0, "sha256": "0" * 64}]], "error": "bundle"},
    {"name": "a file of 129 letters", "set": [[["files", "x" * 129], {"bytes": 0, "sha256": "0" * 64}]], "error": "bundle"},
    {"name": "the manifest among its files", "set": [[["files", "manifest.json"], {"bytes": 0, "sha256": "0" * 64}]], "error": "bundle"},
    {"name": "a file that is not there", "set": [[["files", "extra"], {"bytes": 0, "sha256": "0" * 64}]], "error": "bundle"},
    {"name": "65 files", "set": [[["files", f"f{i}"], {"bytes": 0, "sha256": "0" * 64}] for i in range(65)], "error": "bundle"},
    {"name": "no weights", "remove": [["files", "model.onnx.data"]], "error": "bundle"},
    {"name": "no vectors", "remove": [["files", "vectors.json"]], "error": "bundle"},
    {"name": "another hash of the graph", "set": [[["files", "model.onnx", "sha256"], "0" * 64]], "error": "bundle"},
    {"name": "another size of the graph", "set": [[["files", "model.onnx", "bytes"], 1]], "error": "bundle"},
    {"name": "a size below 0", "set": [[["files", "model.onnx", "bytes"], -1]], "error": "bundle"},
    {"name": "empty", "text": "", "error": "bundle"},
    {"name": "a list", "text": "[]", "error": "bundle"},
    {"name": "a text", "text": "\"xlstm-edge\"", "error": "bundle"},
    {"name": "cut", "text": "{\"format\": \"xlstm-edge\"", "error": "bundle"},
    {"name": "100,000 lists", "text": "[", "times": 100000, "error": "bundle"},
    {"name": "100,000 objects", "text": "{\"a\":", "times": 100000, "error": "bundle"},
    {"name": "9 MB of blanks", "text": " ", "times": 9437184, "error": "bundle"},
    {"name": "a number of 5,000 digits", "replace": ["\"parameters\": ", "\"parameters\": " + "9" * 5000], "error": "bundle"},
    {"name": "other bytes than UTF-8", "hex": "fffe00", "error": "bundle"},
    {"name": "a byte order mark", "hex": "efbbbf7b7d", "error": "bundle"},
    {"name": "a surrogate in UTF-8", "hex": "7b22eda080223a317d", "error": "bundle"},
]  # fmt: skip

INFINITE, NAN, ZERO = "0000807f", "0000c07f", "00000000"
C, N = "blocks.0.C", "blocks.0.n"
# Of a snapshot of `capped`; the second member of a case says in which type.
SNAPSHOTS: list[tuple[str, Case]] = [
    ("float32", {"name": "as it is", "set": [], "error": None}),
    ("float16", {"name": "halves as they are", "set": [], "error": None}),
    ("float32", {"name": "blanks behind the header", "replace": ["}}", "}}   "], "error": None}),
    ("float32", {"name": "another format", "set": [[["__metadata__", "format"], "pt"]], "error": "state"}),
    ("float32", {"name": "a version of tomorrow", "set": [[["__metadata__", "version"], "4"]], "error": "state"}),
    ("float32", {"name": "a version of yesterday", "set": [[["__metadata__", "version"], "1"]], "error": "state"}),
    ("float32", {"name": "a version as a number", "set": [[["__metadata__", "version"], 2]], "error": "state"}),
    ("float32", {"name": "the version of halves", "set": [[["__metadata__", "version"], "3"]], "error": "state"}),
    ("float16", {"name": "halves of the version without", "set": [[["__metadata__", "version"], "2"]], "error": "state"}),
    ("float32", {"name": "another checkpoint", "set": [[["__metadata__", "source"], "0" * 64]], "error": "state"}),
    ("float32", {"name": "no checkpoint", "remove": [["__metadata__", "source"]], "error": "state"}),
    ("float32", {"name": "tokens below 0", "set": [[["__metadata__", "tokens"], "-1"]], "error": "state"}),
    ("float32", {"name": "tokens that begin with 0", "set": [[["__metadata__", "tokens"], "07"]], "error": "state"}),
    ("float32", {"name": "tokens of 19 digits", "set": [[["__metadata__", "tokens"], "1" + "0" * 18]], "error": "state"}),
    ("float32", {"name": "tokens of 18 digits", "set": [[["__metadata__", "tokens"], "9" * 18]], "error": None}),
    ("float32", {"name": "tokens of other digits", "set": [[["__metadata__", "tokens"], "\u0663"]], "error": "state"}),
    ("float32", {"name": "tokens as a number", "set": [[["__metadata__", "tokens"], 13]], "error": "state"}),
    ("float32", {"name": "unknown metadata", "set": [[["__metadata__", "more"], "x"]], "error": "state"}),
    ("float32", {"name": "no metadata", "remove": [["__metadata__"]], "error": "state"}),
    ("float32", {"name": "a tensor less", "remove": [[N]], "error": "state"}),
    ("float32", {"name": "a tensor more", "set": [[["x"], {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}]], "error": "state"}),
    ("float32", {"name": "an offset of a normalizer", "set": [[[f"{N}.offset"], {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}]], "error": "state"}),
    ("float32", {"name": "another type", "set": [[[N, "dtype"], "BF16"]], "error": "state"}),
    ("float32", {"name": "integers", "set": [[[N, "dtype"], "I32"]], "error": "state"}),
    ("float32", {"name": "another shape of the same size", "set": [[[N, "shape"], [1, 1, 2, 4]]], "error": "state"}),
    ("float32", {"name": "a batch of two", "set": [[[N, "shape", 0], 2]], "error": "state"}),
    ("float32", {"name": "a shape below 0", "set": [[[N, "shape", 0], -1]], "error": "state"}),
    ("float32", {"name": "a shape of nine axes", "set": [[[N, "shape"], [1] * 9]], "error": "state"}),
    ("float32", {"name": "an unknown member", "set": [[[N, "more"], 1]], "error": "state"}),
    ("float32", {"name": "a member missing", "remove": [[N, "dtype"]], "error": "state"}),
    ("float32", {"name": "two tensors in one place", "set": [[[N, "data_offsets"], [0, 32]], [[C, "data_offsets"], [0, 256]]], "error": "state"}),
    ("float32", {"name": "a gap", "set": [[[N, "data_offsets"], [260, 292]]], "error": "state"}),
    ("float32", {"name": "places beyond the file", "set": [[[N, "data_offsets"], [1125899906842624, 1125899906842656]]], "error": "state"}),
    ("float32", {"name": "places beyond 2^53", "set": [[[N, "data_offsets"], [9007199254740994, 9007199254741026]]], "error": "state"}),
    ("float32", {"name": "places the wrong way round", "set": [[[N, "data_offsets"], [288, 256]]], "error": "state"}),
    ("float32", {"name": "one place", "set": [[[N, "data_offsets"], [256]]], "error": "state"}),
    ("float32", {"name": "three places", "set": [[[N, "data_offsets"], [256, 288, 288]]], "error": "state"}),
    ("float32", {"name": "a key twice", "replace": ["{\"__metadata__\"", "{\"__metadata__\":{},\"__metadata__\""], "error": "state"}),
    ("float32", {"name": "a NaN", "data": [[C, 0, NAN]], "error": "state"}),
    ("float32", {"name": "an infinity", "data": [[N, 4, INFINITE]], "error": "state"}),
    ("float16", {"name": "a half that is infinite", "data": [[C, 0, "007c"]], "error": "state"}),
    ("float16", {"name": "infinity times a scale of 0", "data": [[C, 0, "007c"], [f"{C}.scale", 0, ZERO]], "error": "state"}),
    ("float16", {"name": "0 times an infinite scale", "data": [[C, 0, "0000"], [f"{C}.scale", 0, INFINITE]], "error": "state"}),
    ("float16", {"name": "a scale that is no number", "data": [[f"{C}.scale", 0, NAN]], "error": "state"}),
    ("float16", {"name": "a product beyond float32", "data": [[C, 0, "ff7b"], [f"{C}.scale", 0, "ffff7f7f"]], "error": "state"}),
    ("float32", {"name": "data cut", "cut": 4, "error": "state"}),
    ("float32", {"name": "something behind the data", "append": "00000000", "error": "state"}),
    ("float32", {"name": "a header of a terabyte", "length": 1099511627776, "error": "state"}),
    ("float32", {"name": "a header of 2^64 - 1 bytes", "length": 18446744073709551615, "error": "state"}),
    ("float32", {"name": "a header of no bytes", "length": 0, "error": "state"}),
    ("float32", {"name": "empty", "hex": "", "error": "state"}),
    ("float32", {"name": "seven bytes", "hex": "02000000000000", "error": "state"}),
    ("float32", {"name": "an empty object", "hex": "02000000000000007b7d", "error": "state"}),
    ("float32", {"name": "a list", "hex": "02000000000000005b5d", "error": "state"}),
    ("float32", {"name": "other bytes than UTF-8", "hex": "0400000000000000fffe0001", "error": "state"}),
]  # fmt: skip
FILES: list[Case] = [
    {"name": "weights cut", "file": "model.onnx.data", "cut": 4, "error": "bundle"},
    {"name": "weights longer", "file": "model.onnx.data", "append": "00", "error": "bundle"},
    {"name": "weights missing", "file": "model.onnx.data", "missing": True, "error": "bundle"},
    {"name": "vectors missing", "file": "vectors.json", "missing": True, "error": "bundle"},
    {"name": "manifest missing", "file": "manifest.json", "missing": True, "error": "bundle"},
    {"name": "a graph of other bytes", "file": "model.onnx", "replace_hex": ["6f6e6e78", "6f6e6e79"], "error": "bundle"},
    {"name": "a graph cut, and its hash", "file": "model.onnx", "cut": 100, "rehash": True, "error": "bundle"},
    {"name": "a graph of nothing, and its hash", "file": "model.onnx", "cut": 1000000, "rehash": True, "error": "bundle"},
    {"name": "something behind the graph, and its hash", "file": "model.onnx", "append": "ff", "rehash": True, "error": "bundle"},
    {"name": "an operator of no xLSTM, and its hash", "file": "model.onnx", "replace_hex": [b"Sigmoid".hex(), b"If__oid".hex()], "rehash": True, "error": "bundle"},
    {"name": "weights elsewhere, and the hash", "file": "model.onnx", "replace_hex": [b"model.onnx.data".hex(), b"/etc/os-release".hex()], "rehash": True, "error": "bundle"},
    {"name": "weights that are not listed, and the hash", "file": "model.onnx", "replace_hex": [b"model.onnx.data".hex(), b"other.onnx.data".hex()], "rehash": True, "error": "bundle"},
    {"name": "a place of weights in another form, and the hash", "file": "model.onnx", "replace_hex": ["0a086c6f636174696f6e12", "0a086c6f636174696f6f12"], "rehash": True, "error": "bundle"},
]  # fmt: skip


def snapshot_edit_cases() -> list[Case]:
    """Edits of the snapshots of `capped`."""
    return [
        {"bundle": "capped", "snapshot": f"snapshots/capped-{dtype}.safetensors", **case} for dtype, case in SNAPSHOTS
    ]


def file_cases() -> list[Case]:
    """Edits of a file of `capped`."""
    return [{"bundle": "capped", **case} for case in FILES]
