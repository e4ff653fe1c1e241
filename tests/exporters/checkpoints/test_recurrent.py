"""The layouts of the sLSTM's recurrent kernel."""

from pathlib import Path

import pytest

from xlstm_edge_exporters.checkpoints import open_checkpoint

from ...conftest import BY_NAME
from .forms import CheckpointOf, assert_equal_to_official, official, rewritten, tensors_of


@pytest.mark.parametrize("name", ["lm-mixed", "lm-all-slstm", "lm-three-heads", "stack-slstm"])
def test_the_open_layout_of_the_recurrent_kernel(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """(H, DH, 4, DH) and (H, 4, DH), by the package's own conversion from either backend's layout."""
    from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla, sLSTMCellConfig

    source = checkpoint_of(BY_NAME[name])
    tensors = tensors_of(source)
    for kernel in [key for key in tensors if key.endswith("_recurrent_kernel_")]:
        heads, rows, columns = tensors[kernel].shape
        config = sLSTMCellConfig(hidden_size=heads * min(rows, columns), num_heads=heads, bias_init="standard")
        cell = sLSTMCell_vanilla(config) if rows > columns else sLSTMCell_cuda(config, skip_backend_init=True)
        bias = kernel.replace("_recurrent_kernel_", "_bias_")
        tensors[kernel] = cell._recurrent_kernel_int2ext(tensors[kernel]).contiguous()
        tensors[bias] = cell._bias_int2ext(tensors[bias]).contiguous()
        assert tensors[kernel].ndim == 4 and tensors[bias].ndim == 3
    folder = rewritten(source, tmp_path / "checkpoint", tensors, "model.safetensors")
    assert_equal_to_official(open_checkpoint(folder), official(name, source), BY_NAME[name])
