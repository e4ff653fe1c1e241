"""What an export takes of memory that is its own, on a model of some size, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from xlstm_edge_exporters.checkpoints.outline import describe_tensors

CONFIG = {"model_type": "xlstm", "embedding_dim": 2048, "num_heads": 4, "num_blocks": 2, "vocab_size": 65536}
# Prints what `plan` says, and the largest anonymous memory that the kernel counts during the export.
PROGRAM = """
import json, re, sys, threading, time
import xlstm_edge
largest, done = 0, threading.Event()
def watch():
    global largest
    while not done.is_set():
        found = re.search(r"RssAnon:\\s+([0-9]+)", open("/proc/self/status").read())
        largest = max(largest, 1024 * int(found[1]))
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
xlstm_edge.export(sys.argv[1], sys.argv[2], quantize="int4", method="rtn")
done.set()
watcher.join()
print(json.dumps([xlstm_edge.plan(sys.argv[1], bandwidth="20GB/s")["export"]["memory_rounded"], largest]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is counted by Linux")
def test_an_export_takes_no_more_memory_than_planned(tmp_path: Path) -> None:
    """Nor than the weights alone."""
    rng, folder = np.random.default_rng(0), tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {name: weight.shape for name, weight in describe_tensors(CONFIG, hugging_face=True).items()}
    numbers = 0.02 * rng.standard_normal(1 << 20, np.float32)
    tensors = {name: np.resize(numbers, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    size = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    command = [sys.executable, "-c", PROGRAM, folder, tmp_path / "bundle"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    planned, taken = json.loads(done.stdout.splitlines()[-1])
    assert taken <= planned
    assert taken <= size  # with Python, torch and onnxruntime, which alone take 0.3 GB
