"""The config of an xLSTM-Large checkpoint: which settings it knows, and whether they agree with the tensors."""

from xlstm_edge_runtime.errors import CheckpointError, shown

from .base import Config, agree, number
from .settings import check_settings

PACKAGE_KEYS = frozenset(
    "embedding_dim num_heads num_blocks vocab_size use_bias norm_eps norm_reduction_force_float32 "
    "add_out_norm qk_dim_factor v_dim_factor chunkwise_kernel sequence_kernel step_kernel mode chunk_size "
    "return_last_states autocast_kernel_dtype eps inference_state_dtype ffn_proj_factor "
    "ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap weight_mode".split()
)
HUGGING_FACE_KEYS = PACKAGE_KEYS | frozenset(
    "hidden_size num_hidden_layers tie_word_embeddings add_post_norm add_qk_norm add_post_blocks_norm cell_norm_eps "
    "hidden_act force_bos_token_insert".split()
)
KEYS = HUGGING_FACE_KEYS
# Fields of the converters' and of older forms: what each must say, because nothing else is implemented.
FIXED: dict[str, tuple[object, ...]] = {
    "add_post_norm": (False, None),
    "add_qk_norm": (False, None),
    "hidden_act": ("silu", "swish", None),
}
KERNELS = ("chunkwise_kernel", "sequence_kernel", "step_kernel", "forward_backend_name", "step_backend_name")


def require(config: Config, *keys: str) -> None:
    """CheckpointError for a setting that no tensor shows and the config does not state."""
    for key in keys:
        if config.get(key) is None:
            raise CheckpointError(f"expected {key} in an xLSTM-Large config, got none; use the config of the training")


def agree_either(config: Config, keys: tuple[str, str], actual: int) -> None:
    """Hugging Face files state width and depth under two names, and one of them may be a default that nobody meant."""
    if actual not in (config.get(keys[0]), config.get(keys[1])):
        for key in keys:
            agree(config, key, actual)


def check_config(config: Config, *, shared: bool = False) -> list[str]:
    """Names of the ignored settings; CheckpointError for those that disagree or are not known."""
    for key in KERNELS:
        if "siging" in str(config.get(key, "")):
            raise CheckpointError(
                f"expected exponential input gates, got {key} {shown(config[key])}; sigmoid gates are not supported"
            )
    for key, allowed in FIXED.items():
        if config.get(key) not in allowed:
            raise CheckpointError(
                f"expected {key} {shown(allowed[0])}, got {shown(config[key])}, which no released model uses; "
                "not supported"
            )
    if (eps := config.get("cell_norm_eps")) is not None and eps != number(config, "norm_eps", 1e-6):
        raise CheckpointError(
            f"expected cell_norm_eps as norm_eps, got {shown(eps)}, which no released model uses; not supported"
        )
    ignored = check_settings(config, HUGGING_FACE_KEYS, "an xLSTM-Large config", shared=shared)
    return [name for name in ignored if not name.startswith("_")]
