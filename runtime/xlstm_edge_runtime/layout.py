"""Names of a bundle's files, and of the folder that a tuning adds: said once, for whoever writes, reads or replaces them."""

import re

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
VECTORS = "vectors.json"
TOKENIZER = "tokenizer.json"
LICENCE, CARD = "LICENSE", "MODEL_CARD.md"  # of the checkpoint, where it came with them
TUNING = "tuned"  # a folder: the record, and sometimes a graph and its weights
TUNING_RECORD = "tuned.json"


def compiled_name(name: str) -> str:
    """The file of a graph that was compiled ahead of time for the chip `name`."""
    return f"model.{name}.onnx"


def weights_of(graph: str) -> str:
    """The file of a graph's weights, which lies beside it."""
    return f"{graph}.data"


# All that an export writes; forms of the graph that are compiled ahead of time besides.
COMPILED = re.compile(r"model(\.[a-z0-9]+(\.onnx|_qnn\.bin|\.xml|\.bin)|\.mlpackage\.zip|\.tflite)")
EXPORTED = frozenset({MANIFEST, GRAPH, weights_of(GRAPH), VECTORS, TOKENIZER, LICENCE, CARD})
TUNED_GRAPH = frozenset({GRAPH, weights_of(GRAPH)})
TUNED = TUNED_GRAPH | {TUNING_RECORD}  # all that a tuning writes into its folder
