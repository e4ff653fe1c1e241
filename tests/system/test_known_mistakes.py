"""The parity tests can fail: each classic mistake, made on purpose, moves the outputs far beyond the bound."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.reference import run_reference

from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import Case
from ..oracles.official import to_cuda_layout
from ..oracles.reference import Reference

Tensors = dict[str, torch.Tensor]
M, S = "xlstm_block_stack.blocks.0.", "xlstm_block_stack.blocks.1."
L = "backbone.blocks.0."


def swap(a: str, b: str) -> Callable[[Tensors], None]:
    def change(t: Tensors) -> None:
        t[a], t[b] = t[b], t[a]

    return change


def apply(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def change(t: Tensors) -> None:
        t[name] = function(t[name]).contiguous()

    return change


def cuda_bias_only(t: Tensors) -> None:
    kernel, bias = t[S + "xlstm.slstm_cell._recurrent_kernel_"], t[S + "xlstm.slstm_cell._bias_"]
    t[S + "xlstm.slstm_cell._bias_"] = to_cuda_layout(kernel, bias)[1]


def halves(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[len(x) // 2 :], x[: len(x) // 2]])


V1 = {
    "sLSTM fgate and igate by their names": swap(S + "xlstm.fgate.weight", S + "xlstm.igate.weight"),
    "sLSTM z and o": swap(S + "xlstm.zgate.weight", S + "xlstm.ogate.weight"),
    "mLSTM i and f": swap(M + "xlstm.mlstm_cell.igate.weight", M + "xlstm.mlstm_cell.fgate.weight"),
    "mLSTM q and v": swap(M + "xlstm.q_proj.weight", M + "xlstm.v_proj.weight"),
    "w instead of 1 + w": apply(M + "xlstm_norm.weight", lambda w: w - 1),
    "w instead of 1 + w in the head norm": apply(M + "xlstm.mlstm_cell.outnorm.weight", lambda w: w - 1),
    "bias in the other layout": cuda_bias_only,
    "recurrent kernel transposed": apply(
        S + "xlstm.slstm_cell._recurrent_kernel_", lambda k: k.reshape(4, 4, 16, 16).transpose(2, 3).reshape(4, 64, 16)
    ),
    "convolution backwards": apply(M + "xlstm.conv1d.conv.weight", lambda w: w.flip(-1)),
    "x and z branches": apply(M + "xlstm.proj_up.weight", halves),
    "feed-forward gate and up": apply(S + "ffn.proj_up.weight", halves),
    "no skip": apply(M + "xlstm.learnable_skip", torch.zeros_like),
    "another head": apply("lm_head.weight", lambda w: w.flip(0)),
}
LARGE = {
    "i and f": swap(L + "mlstm_layer.igate_preact.weight", L + "mlstm_layer.fgate_preact.weight"),
    "q and k": swap(L + "mlstm_layer.q.weight", L + "mlstm_layer.k.weight"),
    "v and o": swap(L + "mlstm_layer.v.weight", L + "mlstm_layer.ogate_preact.weight"),
    "gate and up": swap(L + "ffn.proj_up_gate.weight", L + "ffn.proj_up.weight"),
    "1 + w instead of w": apply(L + "norm_mlstm.weight", lambda w: w + 1),
    "head norm": apply(L + "mlstm_layer.multihead_norm.weight", lambda w: w + 1),
}


def difference(case: Case, folder: Path, other: Path) -> float:
    """Canonical model of one checkpoint against the recurrence of another, as a share of the range."""
    sequence, checkpoint = sequence_for(case, 20), open_checkpoint(folder)
    expected = Reference(other).run(sequence)
    got = run_reference(checkpoint.spec, checkpoint.weights, sequence).outputs
    return float(np.abs(got - expected).max() / np.ptp(expected))


@pytest.mark.parametrize(
    ("name", "change"),
    [("lm-mixed", change) for change in V1.values()] + [("large-plain", change) for change in LARGE.values()],
    ids=[*V1, *LARGE],
)
def test_the_mistake_shows(
    name: str, change: Callable[[Tensors], None], checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    case, folder = BY_NAME[name], checkpoint_of(BY_NAME[name])
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert difference(case, folder, folder) < 1e-6
    assert difference(case, tmp_path, folder) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["lm-three-heads", "lm-hf-tied", "stack-mixed", "large-fused", "hf-plain"])
@pytest.mark.filterwarnings("ignore")  # the official packages warn about each other
def test_half_precision_checkpoints(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from ..oracles.official import make_checkpoint

    case = BY_NAME[name]
    folder = make_checkpoint(case, tmp_path / "half", dtype=dtype)
    assert difference(case, folder, folder) < 1e-6
