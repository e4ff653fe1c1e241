"""Which settings of a config decide what a model computes, and which cannot.

Three kinds: those that a family reads, those that belong to training, logging or kernels and are ignored by name, and
all others, which are refused: a setting that nobody knows may be another architecture.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError, escaped, shown

from ..weights import listed

# Exactly these: generic fields of Hugging Face configs, and historical ones of the converters to xLSTM-Large. They say
# how to run, initialize or sample, not what is computed.
HARMLESS = frozenset(
    "architectures auto_map model_type torch_dtype dtype param_dtype transformers_version use_cache id2label label2id "
    "num_labels problem_type output_attentions output_hidden_states return_dict torchscript is_decoder "
    "tie_encoder_decoder cross_attention_hidden_size add_cross_attention finetuning_task task_specific_params "
    "tokenizer_class prefix pruned_heads chunk_size_feed_forward use_bfloat16 tf_legacy_loss max_length min_length "
    "do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p "
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens force_bos_token_insert add_bos_token "
    "add_eos_token max_position_embeddings max_seq_len max_seq_length seq_len seq_length sequence_length context_len "
    "context_length context_size block_size ctx_len max_inference_chunksize attn_implementation is_encoder_decoder "
    "head_dim qk_head_dim v_head_dim mlstm_round_up_to_multiple_of igate_bias_init_range fgate_bias_init_range "
    "add_forward_backend_padding forward_backend_name step_backend_name backward_backend_name backend_name "
    "chunkwise_kernel sequence_kernel step_kernel mode chunk_size return_last_states autocast_kernel_dtype "
    "inference_state_dtype norm_reduction_force_float32 add_embedding_dropout weight_decay_on_embedding "
    "batch_size mini_batch_size micro_batch_size epochs epoch max_epochs num_epochs n_epochs num_train_epochs seed "
    "random_seed lr min_lr max_lr base_lr betas beta1 beta2 adam_epsilon momentum weight_decay patience clip_grad "
    "clip_grad_norm clip_grad_value grad_clip gradient_clip gradient_clip_val gradient_clip_algorithm max_grad_norm "
    "grad_norm_clip gradient_accumulation_steps accumulate_grad_batches gradient_checkpointing num_workers pin_memory "
    "device devices device_map accelerator strategy num_nodes world_size rank local_rank gpus num_gpus n_gpu fp16 bf16 "
    "tf32 amp use_amp precision mixed_precision matmul_precision deterministic benchmark compile torch_compile "
    "use_compile enable_mixed_precision fsdp ddp deepspeed label_smoothing name run_name run_id model_name "
    "experiment_name project entity tags notes group author description version date time timestamp license language "
    "hydra defaults callbacks criterion verbose debug resume steps max_steps num_steps total_steps n_steps "
    "weight_precision amp_precision initializer_range init_std decay_lr "
    "lr_decay decay_steps cosine_annealing trust_remote_code cache_dir vocab_file training dataset "
    "data max_norm clip".split()
)
# Arguments of training loops: transformers' TrainingArguments, Lightning's Trainer, nanoGPT's script, schedulers, loaders.
TRAINERS = frozenset(
    "adam_beta1 adam_beta2 average_tokens_across_devices label_smoothing_factor bf16_full_eval fp16_full_eval "
    "activation_checkpointing activation_checkpointing_kwargs torch_compile_backend torch_compile_mode use_liger_kernel "
    "liger_kernel_config neftune_noise_alpha torch_empty_cache_steps include_num_input_tokens_seen disable_tqdm report_to "
    "trackio_space_id trackio_bucket_id trackio_static_space_id prediction_loss_only include_for_metrics "
    "batch_eval_metrics enable_jit_checkpoint load_best_model_at_end greater_is_better ignore_data_skip "
    "restore_callback_states_from_checkpoint full_determinism use_cpu accelerator_config parallelism_config "
    "remove_unused_columns label_names length_column_name group_by_length ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp_config skip_memory_metrics do_train do_eval "
    "do_predict fast_dev_run min_epochs min_steps max_time limit_train_batches limit_val_batches limit_test_batches "
    "limit_predict_batches overfit_batches check_val_every_n_epoch num_sanity_val_steps enable_checkpointing "
    "enable_progress_bar enable_model_summary inference_mode use_distributed_sampler profiler detect_anomaly barebones "
    "plugins sync_batchnorm reload_dataloaders_every_n_epochs always_save_checkpoint init_from max_iters backend shuffle "
    "drop_last use_wandb use_tensorboard t_max eta_min milestones gamma step_size nesterov random_state num_epoch "
    "pretrained ema cuda gpu distributed vocab_path model_path num_steps_per_epoch tokens_per_batch max_steps_per_epoch "
    "use_checkpoint compile_mode env slurm cluster paths root path sampling_rate clip_value norm_clip persistent_workers "
    "prefetch_factor collate_fn eps_adam find_unused_parameters print_freq split n_jobs early_stop monitor mode_monitor "
    "monitor_mode min_delta swa swa_lrs seed_everything".split()
)
IGNORED = HARMLESS | TRAINERS
HARMLESS_NAMES = re.compile(
    r"_.*|.*_token_id|.*_token|forced_.*|.*dropout|.*dropout_(rate|prob|p)|(learning_rate|lr|warmup)(_.*)?|"
    r"(optim|optimizer|scheduler|lr_scheduler|sched|grad|gradient|weight_decay|amp|use_ema|ema_decay|ema_rate)(_.*)?|"
    r".*_batch_size(_.*)?|(print|sample|generate|plot|report|display)_(every|interval)(_.*)?|"
    r"(log|logging|logger|eval|evaluation|save|saving|checkpoint|ckpt|wandb|tensorboard|mlflow|comet|early_stopping|"
    r"train|trainer|training|val|valid|validation|test|testing|data|dataset|datasets|dataloader|datamodule|tokenizer|"
    r"loss|metrics?|hub|push_to_hub|resume)(_.*)?|(output|logs?|run|work|cache|save|checkpoint)_(dir|path|folder|root)|"
    r".*_seed|.*_(dir|folder)|(weights?|bias|param|parameter|linear|emb|embedding|head|gate|igate|fgate|kernel)_init(_.*)?|"
    r"init_(std|range|method|weights)|(non_embedding|num|n|total|trainable)_(params|parameters)"
)
# What a setting would change, if it is on: looked for before HARMLESS_NAMES.
MEANINGS = {
    r"rope|rotary|alibi|position|pos_?emb|pos_?enc|xpos": "positions, another architecture",
    r"attention|attn|transformer|mamba|hybrid": "layers of another kind, another architecture",
    r"moe|expert|router": "a mixture of experts, another architecture",
    r"siging|sigmoid|exp_?gate|gate_(act|fn)": "gates of another kind",
    r"bidirectional|reverse|backward_pass|flip": "reading from the end, which no stream can",
    r"lora|adapter|peft|prompt_tuning|prefix_tuning": "adapters beside the weights; merge them and save the model",
    r"quant(?!ile)|bnb|gptq|awq|load_in_": "quantized weights; export the float checkpoint they were made from",
    r"norm": "another normalization",
    r"scal(e|ing)|temperature|multiplier|soft_?cap|clip": "a factor or a limit on what is computed",
    r"residual|skip|stochastic_depth|drop_path": "another way to join layers",
    r"share|tie|tying": "weights that stand in several places",
    r"value_|embed": "other vectors than those of the embedding",
}
# Words before which no setting of a model stands: `loss_scale`, `lr_scaling`, `eval_position`.
TRAINING = re.compile(
    r"(lr|learning_rate|loss|grad|gradient|optim|optimizer|sched|scheduler|log|logging|eval|train|trainer|val|test|data|"
    r"dataset|wandb|save|checkpoint|ckpt|tokenizer|warmup|amp|weight_decay)(_.*)?|.*dropout.*|.*_token(_id)?|_.*|"
    r"(emb|embedding)_init(_.*)?"
)
# What the text side of an export reads.
TEXT = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token(_id)?|add_bos_token|force_bos_token_insert")
# Settings that change what is computed and that no tensor's shape shows: what they are where they are not given.
IMPLIED: dict[str, object] = {
    "act_fn": "gelu",
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "norm_eps": 1e-6,
}
# What a net around a stack says of its own layers: normalization of its series, embedding of its inputs, residuals.
OUTER = re.compile(
    r"(.*_)?norm(aliz.*)?(_.*)?|(.*_)?(re)?scal(e|er|ing)(_.*)?|(.*_)?embed(ding)?s?(_.*)?|(.*_)?residuals?(_.*)?|"
    r"(.*_)?skip(_.*)?|flip_.*|(.*_)?positions?|clip|revin.*|(.*_)?multiplier"
)
ACTIVATION = re.compile(r"(.*_)?(act|activation|nonlinearity)(_fn|_func|_function|_type|_name)?")
PARTS = re.compile(r"lstm|feed_?forward|ffn|cell|model|backbone|block|net|arch")  # sections that may be the model's
OFF = (None, False, 0, "", "none", "None", "null", "false", "off")


def check_settings(config: Mapping[str, Any], known: Collection[str], where: str, *, shared: bool = False) -> list[str]:
    """Names of the settings that are ignored; CheckpointError for those that may change what the model computes.

    In a config `shared` with the larger net around a stack, plain values that nobody knows are that net's: the stack's
    dimensions come from its tensors.
    """
    ignored, unknown = [], []
    for key, value in config.items():
        if key in known or TEXT.fullmatch(key):
            continue
        if (meaning := meaning_of(key)) and not (shared and OUTER.fullmatch(key.lower())):
            if not _is_off(value):
                raise CheckpointError(
                    f"expected only settings of {where}, got {escaped(key)} {shown(value)}: {meaning}; not supported"
                )
            ignored.append(key)
        elif (
            value is None
            or key.lower() in IGNORED
            or HARMLESS_NAMES.fullmatch(key.lower())
            or (shared and not isinstance(value, dict))
            or (isinstance(value, dict) and _repeats(value, config, known))
        ):
            ignored.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"expected only settings of {where}, got {listed(sorted(unknown))}, which may change what the model "
            "computes; not supported"
        )
    return ignored


def _repeats(part: Mapping[str, Any], config: Mapping[str, Any], known: Collection[str]) -> bool:
    """Whether a section only says what the known settings say too, as the anchor of a YAML merge does."""
    own = {name: value for name, value in config.items() if name in known}
    stated = {(key, str(value)) for key, value in _all(own)}
    return bool(part) and all((key, str(value)) in stated for key, value in part.items())


def _all(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _all(value)


def check_around(around: Mapping[str, Any], known: Collection[str], *, whole: bool) -> list[str]:
    """The same for what stands beside the model's section: only what is known to change a model is refused.

    `known` may stand there too, as Hugging Face wrappers repeat them; the section's own decide. Beside a model that is
    `whole`, a section of its own counts as well; beside a stack inside a larger net it describes another part of that.
    """
    for key, value in around.items():
        meaning = meaning_of(key)
        if key in known or not meaning or _is_off(value):
            continue
        of_another_part = OUTER.fullmatch(key.lower()) is not None or isinstance(value, (dict, list))
        if whole or not of_another_part:
            raise CheckpointError(
                f"expected no setting beside the model's that changes it, got {escaped(key)} {shown(value)}: {meaning}; "
                "not supported"
            )
    return [key for key in around if not key.startswith("_") and not TEXT.fullmatch(key)]


def check_beside(beside: Mapping[str, Any], section: Mapping[str, Any], keys: Collection[str]) -> None:
    """CheckpointError for a value of `keys` that stands beside the model's settings only, and is not what is implied there.

    No tensor shows these, and whether such a value is the model's or another part's is not to be guessed.
    """
    stated = {_standard(key) for key, _ in _values(section, keys, all_of=True)}
    for key, value in _values(beside, keys):
        name = _standard(key)
        plain = value.lower() if isinstance(value, str) else value
        if name not in stated and plain not in (None, IMPLIED[name]):
            raise CheckpointError(
                f"expected {name} among the model's own settings, got {escaped(key)} {shown(value)} beside them, which may be "
                f"the model's or another part's; write the value of the training ({shown(IMPLIED[name])} if none was given) "
                "where the model's settings are"
            )


def _values(tree: Mapping[str, Any], keys: Collection[str], *, all_of: bool = False, depth: int = 4) -> Iterator[Any]:
    """(key, value) pairs of `keys`, in sections that may belong to the model, or in all of them."""
    for key, value in tree.items():
        if _standard(key) in keys and not isinstance(value, Mapping):
            yield key, value
        elif isinstance(value, Mapping) and depth and (all_of or PARTS.search(key.lower())):
            yield from _values(value, keys, all_of=all_of, depth=depth - 1)


def _standard(key: str) -> str:
    """The name that a setting has in the official packages; trainers give an activation many."""
    return "act_fn" if ACTIVATION.fullmatch(key.lower()) else key


def meaning_of(key: str) -> str | None:
    """What a setting of this name would change; None if it may mean anything, or nothing."""
    name = key.lower()
    if name in IGNORED or TRAINING.fullmatch(name):
        return None
    return next((meaning for pattern, meaning in MEANINGS.items() if re.search(pattern, name)), None)


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping) and "enabled" in value:
        return _is_off(value["enabled"])
    return any(value is off or (type(value) is type(off) and value == off) for off in OFF) or value in ([], {})
