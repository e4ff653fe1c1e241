"""The config of an xLSTM v1 checkpoint: which settings it knows, and whether they agree with the tensors.

Dimensions come from the tensors; a setting that says otherwise belongs to another training.
"""

from xlstm_edge_runtime.errors import CheckpointError, shown

from .base import Config, agree, section
from .settings import check_settings

MODEL_KEYS = frozenset(
    "type mlstm_block slstm_block context_length num_blocks embedding_dim add_post_blocks_norm bias dropout "
    "slstm_at vocab_size tie_weights weight_decay_on_embedding add_embedding_dropout".split()
)
UP_KEYS = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")
SHARED_KEYS = ("embedding_dim", "num_heads", "dropout", "bias", "context_length", "conv1d_kernel_size")
MLSTM_KEYS = frozenset((*UP_KEYS, *SHARED_KEYS, "qkv_proj_blocksize"))
SLSTM_KEYS = frozenset(
    "hidden_size num_states backend function bias_init recurrent_weight_init num_gates gradient_recurrent_cut "
    "gradient_recurrent_clipval forward_clipval batch_size input_shape internal_input_shape output_shape "
    "constants dtype dtype_b dtype_r dtype_w dtype_g dtype_s dtype_a enable_automatic_mixed_precision "
    "initial_val group_norm_weight".split()
) | frozenset(SHARED_KEYS)
FFN_KEYS = frozenset((*UP_KEYS, "act_fn", "embedding_dim", "dropout", "bias", "ff_type"))
KEYS = MODEL_KEYS | MLSTM_KEYS | SLSTM_KEYS | FFN_KEYS | {"mlstm", "slstm", "feedforward"}


def check_config(config: Config, kinds: dict[int, str], count: int, width: int, *, shared: bool) -> list[str]:
    """Names of the ignored settings; CheckpointError for those that disagree or are not known."""
    ignored = check_settings(config, MODEL_KEYS, "an xLSTM v1 config", shared=shared)
    agree(config, "num_blocks", count)
    agree(config, "embedding_dim", width)
    mlstm, slstm = section(config, "mlstm_block"), section(config, "slstm_block")
    for block, known, name in ((mlstm, MLSTM_KEYS, "mlstm"), (slstm, SLSTM_KEYS, "slstm")):
        ignored += check_settings(block or {}, {name, "feedforward"}, f"{name}_block")
        ignored += check_settings(section(block or {}, name) or {}, known, f"{name}_block.{name}")
    ffn = section(slstm or {}, "feedforward") or {}
    ignored += check_settings(ffn, FFN_KEYS, "slstm_block.feedforward")
    if ffn.get("ff_type", "ffn_gated") != "ffn_gated" or (mlstm or {}).get("feedforward") is not None:
        raise CheckpointError(
            "expected a gated feed-forward behind sLSTM blocks only, got another ff_type or one behind mLSTM blocks; "
            "not supported"
        )
    _check_cell(section(slstm or {}, "slstm") or {})
    _check_places(config.get("slstm_at"), mlstm is None, kinds, count)
    return [name for name in dict.fromkeys(ignored) if not name.startswith("_")]


def _check_cell(cell: Config) -> None:
    if cell.get("function", "slstm") != "slstm":
        raise CheckpointError(f"expected an sLSTM with function slstm, got {shown(cell['function'])}; not supported")
    on_cuda = cell.get("backend") != "vanilla"  # whose kernel takes the gradient's bound for the output, too
    if cell.get("forward_clipval") is not None or (on_cuda and cell.get("gradient_recurrent_clipval") is not None):
        raise CheckpointError("expected an sLSTM without clipped outputs, got one with a clipval; not supported")
    for key in ("num_states", "num_gates"):
        agree(cell, key, 4, "the sLSTM")


def _check_places(stated: object, only_slstm: bool, kinds: dict[int, str], count: int) -> None:
    if stated is None:
        return
    if stated != "all" and not (
        isinstance(stated, list) and all(type(i) is int and -count <= i < count for i in stated)
    ):
        raise CheckpointError(
            f"expected slstm_at as a list of block numbers below {count} or all, got {shown(stated)}; use the config of "
            "this training"
        )
    at = set(range(count)) if stated == "all" or only_slstm else {i % count for i in stated}
    actual = {i for i, kind in kinds.items() if kind == "slstm"}
    if at != actual:
        raise CheckpointError(
            f"expected sLSTM blocks at {sorted(at)[:20]} as slstm_at says, got {sorted(actual)[:20]} from the tensors; "
            "use the config of this training"
        )


def context_length(config: Config) -> int | None:
    """Tokens of the training windows, where the config states a number."""
    length = config.get("context_length")
    return length if isinstance(length, int) and length > 0 else None
