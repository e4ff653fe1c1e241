"""A bare block stack as a streaming feature extractor: float vectors in, float vectors out, constant memory.

Makes its own tiny untrained stack with the official `xlstm` package (pip install --no-deps xlstm), so that it runs as it is:

    python examples/stream_sensor.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from dacite import from_dict
from safetensors.torch import save_file
from xlstm import xLSTMBlockStack, xLSTMBlockStackConfig

import xlstm_edge

CONFIG = {
    "embedding_dim": 16,
    "num_blocks": 2,
    "context_length": 128,
    "slstm_at": [1],
    "mlstm_block": {"mlstm": {"num_heads": 2}},
    "slstm_block": {"slstm": {"num_heads": 2, "backend": "vanilla"}, "feedforward": {"proj_factor": 1.3}},
}

with tempfile.TemporaryDirectory() as folder:
    checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
    checkpoint.mkdir()
    torch.manual_seed(0)
    stack = xLSTMBlockStack(from_dict(xLSTMBlockStackConfig, CONFIG))
    save_file(stack.state_dict(), checkpoint / "model.safetensors")
    (checkpoint / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    xlstm_edge.export(checkpoint, bundle)
    session = xlstm_edge.load(bundle).session()
    for step in range(1000):  # one sample at a time, as a sensor gives them
        features = session.step(np.sin(np.arange(16, dtype=np.float32) + 0.1 * step))
    print(f"{session.tokens} samples read, {session.nbytes:,} bytes of state, features {features[:3]}")
