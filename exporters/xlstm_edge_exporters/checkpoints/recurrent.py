"""The sLSTM's recurrent kernel and bias: who stores them how, and their canonical form.

S[h, j, g, o] is the weight from unit j of head h to gate g (i, f, z, o) of unit o. The `cuda` backend of the `xlstm`
package folds the last two axes, the `vanilla` one stores S[h, g * DH + o, j] and its bias gate by gate; the package
itself hands both out unfolded, which is also how other trainers store them.
"""

from typing import Any, Literal

from xlstm_edge_runtime.errors import CheckpointError, shown

from ..weights import Stored, Weight

Layout = Literal["cuda", "vanilla", "open"]
Shape = tuple[int, ...]
KERNEL, BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"


def layout_of(stored: Stored, layer: str, heads: int, dh: int) -> Layout:
    """Which layout a layer's kernel has; CheckpointError for any other, and where two would have the same shape."""
    shape = stored.shape(layer + KERNEL)
    for layout, (kernel, _) in _layouts(heads, dh).items():
        if shape == kernel and not (layout == "open" and dh == 4):  # (H, DH, 4, DH) or (H, 4, DH, DH)?
            return layout
    why = ", whose axes cannot be told apart" if shape == (heads, 4, 4, 4) else ""
    known = ", ".join(str(kernel) for kernel, _ in _layouts(heads, dh).values())
    raise CheckpointError(
        f"expected {stored.label(layer + KERNEL)} as one of {known}, got shape {shown(str(shape))}{why}; save the model "
        "with the xlstm package"
    )


def shapes(layer: str, layout: Layout, heads: int, dh: int) -> dict[str, Shape]:
    """Expected shapes of the two tensors."""
    kernel, bias = _layouts(heads, dh)[layout]
    return {layer + KERNEL: kernel, layer + BIAS: bias}


def canonical(stored: Stored, *, layer: str, layout: Layout, heads: int, dh: int) -> tuple[Weight, Weight]:
    """Kernel (H, DH, 4 * DH) and bias (4 * H * DH): first all heads' (i, -f), then all heads' (z, o)."""
    kernel, bias = stored[layer + KERNEL], stored[layer + BIAS]
    if layout == "vanilla":
        kernel = kernel.reshape(heads, 4, dh, dh).transpose(0, 3, 1, 2)
        bias = bias.reshape(4, heads, dh).transpose(1, 0, 2)
    else:
        kernel, bias = kernel.reshape(heads, dh, 4, dh), bias.reshape(heads, 4, dh)
    bias = bias.map(_negate_f_of_bias).transpose(1, 0, 2).map(_pair_gates).reshape(4 * heads * dh)
    return kernel.map(_negate_f_of_kernel).reshape(heads, dh, 4 * dh), bias


def _layouts(heads: int, dh: int) -> dict[Layout, tuple[Shape, Shape]]:
    return {
        "cuda": ((heads, dh, 4 * dh), (4 * heads * dh,)),
        "vanilla": ((heads, 4 * dh, dh), (4 * heads * dh,)),
        "open": ((heads, dh, 4, dh), (heads, 4, dh)),
    }


def _negate_f_of_bias(bias: Any) -> Any:
    """(H, 4, DH) with the forget gate's row negated."""
    bias = bias.copy()
    bias[:, 1] *= -1
    return bias


def _negate_f_of_kernel(kernel: Any) -> Any:
    """(H, DH, 4, DH) with the forget gate's columns negated."""
    kernel = kernel.copy()
    kernel[:, :, 1] *= -1
    return kernel


def _pair_gates(bias: Any) -> Any:
    """(4, H, DH) in gate order -> the same shape holding, flat, (2 pairs, H, 2, DH): all (i, -f), then all (z, o)."""
    gates, heads, dh = bias.shape
    return bias.reshape(2, 2, heads, dh).transpose(0, 2, 1, 3).reshape(gates, heads, dh)
