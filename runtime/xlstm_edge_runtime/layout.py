"""Names of a bundle's files, and of the folder that a tuning adds: said once, for whoever writes, reads or replaces them."""

import re

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
PROMPT_GRAPH = "prompt.onnx"  # for calls of a fixed number of tokens, where the graph takes one; with the same weights
VECTORS = "vectors.json"
TOKENIZER = "tokenizer.json"
GENAI_CONFIG, TOKENIZER_CONFIG = (
    "genai_config.json",
    "tokenizer_config.json",
)  # what onnxruntime-genai opens a folder by
COMPANIONS = frozenset({GENAI_CONFIG, TOKENIZER_CONFIG})
LICENCE, CARD = "LICENSE", "MODEL_CARD.md"  # of the checkpoint, where it came with them
TUNING = "tuned"  # a folder: the record, and sometimes a graph and its weights
TUNING_RECORD = "tuned.json"


def compiled_name(graph: str, chip: str) -> str:
    """The file of a graph that was compiled ahead of time for a chip."""
    return f"{graph.removesuffix('.onnx')}.{chip}.onnx"


def weights_of(graph: str) -> str:
    """The file of a graph's weights, which lies beside it."""
    return f"{graph}.data"


# All that an export writes; forms of the graph that are compiled ahead of time besides.
COMPILED = re.compile(r"(model|prompt)\.[a-z0-9]+(\.onnx|_qnn\.bin|\.xml|\.bin)|model(\.mlpackage\.zip|\.tflite)")
EXPORTED = COMPANIONS | {MANIFEST, GRAPH, PROMPT_GRAPH, weights_of(GRAPH), VECTORS, TOKENIZER, LICENCE, CARD}
TUNED_GRAPH = frozenset({GRAPH, weights_of(GRAPH)})
TUNED = TUNED_GRAPH | {TUNING_RECORD}  # all that a tuning writes into its folder
