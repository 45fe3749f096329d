"""Settings of other trainers (TRL, LLaMA-Factory, ms-swift, Unsloth, verl), and ours for the same.

A name leads to a sentence, not to a value: the units differ (a batch is counted in prompts here, and a
stage ends after a number of steps), so that a silent translation would train something else.
"""

from __future__ import annotations

_STAGES = ("sft", "warmup", "align", "rlvr")


def _of_stage(setting: str, stage: str | None) -> str:
    """Return "is STAGE.setting here", for one stage or all that have the setting."""
    stages = [stage] if stage else ["sft", "align", "rlvr"]
    return f"is {', '.join(f'{name}.{setting}' for name in stages)} here"


# Names that are set by stage: the setting after the stage's name, and what else there is to say.
_BY_STAGE = {
    "lr": ("optim.learning_rate", ""),
    "learning_rate": ("optim.learning_rate", ""),
    "lr_scheduler": ("optim.schedule", " (constant or cosine)"),
    "lr_scheduler_type": ("optim.schedule", " (constant or cosine)"),
    "warmup_ratio": ("optim.warmup_ratio", ""),
    "lr_warmup_steps_ratio": ("optim.warmup_ratio", ""),
    "warmup_steps": ("optim.warmup_ratio", " (a share of the steps; warmup.steps is a stage)"),
    "lr_warmup_steps": ("optim.warmup_ratio", " (a share of the steps)"),
    "num_warmup_steps": ("optim.warmup_ratio", " (a share of the steps)"),
    "weight_decay": ("optim.weight_decay", ""),
    "max_grad_norm": ("optim.max_grad_norm", ""),
    "grad_clip": ("optim.max_grad_norm", ""),
    "optim": ("optim.name", " (adamw, adamw8bit, paged_adamw8bit)"),
    "optimizer": ("optim.name", " (adamw, adamw8bit, paged_adamw8bit)"),
    "max_steps": ("steps", ""),
    "num_steps": ("steps", ""),
    "total_training_steps": ("steps", ""),
    "num_train_epochs": ("steps", " (an epoch is rows / batch size steps)"),
    "num_epochs": ("steps", " (an epoch is rows / batch size steps)"),
    "epochs": ("steps", " (an epoch is rows / batch size steps)"),
    "total_epochs": ("steps", " (an epoch is rows / batch size steps)"),
}
_BATCH = (
    "is sft.batch_size, align.prompts_per_step or rlvr.prompts_per_step here: the batch of one step, which "
    "is split into packs of model.max_pack_tokens by itself"
)
_MEMORY = (
    "has no counterpart, as a step accumulates over packs by itself: the batch is sft.batch_size, "
    "align.prompts_per_step or rlvr.prompts_per_step, and model.max_pack_tokens bounds memory"
)
_PRECISION = (
    "is model.compute_dtype here (float32, bfloat16 or float16; auto chooses what the card can do)"
)
_DATA = "is data.train here: data.task=files data.train=FILE, a folder or a hub id works too"
_HELDOUT = "is data.heldout here: data.task=files data.heldout=FILE"
_MODEL = "is model.name here: model.name=ID, a hub id or a folder"
_OUT = "is the option --out DIR here"
_GROUP = "is rlvr.group_size here, and align.group_size in alignment"
_KL = "is rlvr.kl_weight here (and align.dpo_beta for align.method=dpo)"
_CLIP_LOW, _CLIP_HIGH = "is rlvr.loss.clip_low here", "is rlvr.loss.clip_high here"
_LENGTH = "is sampling.max_completion_tokens here"
_PROMPT = "is model.max_prompt_tokens here (with the picture's tokens)"
_TRACK = "is track here, as in track=[wandb] (tensorboard, trackio, wandb; []: none)"
_RANK, _ALPHA = "is lora.rank here", "is lora.alpha here"
_QUANTISED = "is model.quantization here: nf4 (4 bit, the default) or none"
_ALL_LINEAR = (
    "has no counterpart: the adapter is on every linear layer of the language model "
    "(lora.rank, lora.alpha)"
)
_COLUMNS = "is data.columns here: data.columns='{prompt: question, images: image, answer: answer}'"
_LOCAL = "give model.name=FOLDER, a downloaded snapshot, for a fixed revision"
_SAVE = "is save_every here (steps between checkpoints; the last two are kept)"
_CHECKPOINTING = "is model.gradient_checkpointing here"
_ADAPTER = "is sft.start_from here: a PEFT folder or hub id"
_REWARDS = "is rlvr.rewards here: rlvr.rewards='{accuracy: 0.8, format: 0.2}', or file.py:function"
_FOREIGN = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size", "batch_size",
         "global_batch_size", "ppo_mini_batch_size", "generation_batch_size"), _BATCH),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "micro_batch_size", "per_device_eval_batch_size",
         "ppo_micro_batch_size_per_gpu", "steps_per_generation"), _MEMORY),
    **dict.fromkeys(
        ("num_generations", "group_size", "rollout_n", "n", "num_return_sequences", "num_samples"),
        _GROUP),
    **dict.fromkeys(
        ("max_prompt_length", "max_seq_length", "max_seq_len", "max_length", "cutoff_len",
         "model_max_length"), f"{_PROMPT}; completions: sampling.max_completion_tokens"),
    **dict.fromkeys(
        ("max_completion_length", "max_new_tokens", "max_response_length", "response_length",
         "max_tokens", "max_generated_tokens"), _LENGTH),
    **dict.fromkeys(("max_model_len", "vllm_max_model_length"), _PROMPT),
    **dict.fromkeys(("beta", "kl_coef", "kl_loss_coef", "init_kl_coef", "pref_beta"), _KL),
    **dict.fromkeys(("epsilon", "cliprange", "clip_ratio", "clip_range", "eps_clip", "clip_ratio_low"),
                    f"{_CLIP_LOW}, and rlvr.loss.clip_high above 1"),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), _CLIP_HIGH),
    "entropy_coeff": "is rlvr.loss.entropy_weight here",
    "loss_type": "is rlvr.loss.name here (rlvr.preset sets an algorithm's official numbers)",
    "adv_estimator": "is rlvr.preset here (grpo, dapo, gspo)",
    "algorithm": "is rlvr.preset here (grpo, dapo, gspo)",
    "importance_sampling_level": "is rlvr.loss.name here (sequence: gspo, with rlvr.preset=gspo)",
    "scale_rewards": "is rlvr.scale here (group, batch, none)",
    "num_iterations": "is rlvr.num_minibatches here",
    "ppo_epochs": "is rlvr.num_minibatches here",
    "mask_truncated_completions": "is rlvr.mask_truncated here",
    **dict.fromkeys(("reward_funcs", "reward_weights", "reward_functions", "custom_reward_function",
                     "reward_model", "reward_plugin", "external_plugins"), _REWARDS),
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "is sampling.{name} here"),
    **dict.fromkeys(("save_steps", "save_freq", "save_strategy", "save_interval"), _SAVE),
    "save_total_limit": "has no counterpart: the last two checkpoints are kept (save_every)",
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy", "test_freq"),
                    "is eval.every here (steps between evaluations inside a stage)"),
    "load_best_model_at_end": "is eval.keep=best here (with eval.every)",
    **dict.fromkeys(("logging_steps", "logging_dir", "logging_strategy", "logging_first_step", "plot_loss"),
                    "has no counterpart: every step is written to metrics.jsonl, and plots/ is drawn"),
    "log_completions": "has no counterpart: every completion is written to rollouts/",
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "has no counterpart: AdamW's defaults"),
    **dict.fromkeys(("device_map", "device", "use_cpu", "cuda"), "is model.device here"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit", "quant_bits", "quant_method",
                     "bnb_4bit_quant_type", "quantization"), _QUANTISED),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "dtype", "tf32", "precision"), _PRECISION),
    **dict.fromkeys(("lora_r", "lora_rank", "r", "peft_r"), _RANK),
    "lora_alpha": _ALPHA,
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules", "target_parameters",
                     "lora_dropout", "dropout", "lora_bias", "bias", "modules_to_save", "use_peft",
                     "use_dora", "init_lora_weights", "finetuning_type", "full_finetuning", "train_type",
                     "tuner_type", "sft_type", "freeze_vit", "freeze_aligner", "freeze_vision_tower",
                     "freeze_multi_modal_projector"),
                    _ALL_LINEAR),
    **dict.fromkeys(("adapter_name_or_path", "adapters", "resume_from_adapter"), _ADAPTER),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "model", "model_path",
                     "model_id_or_path", "model.path", "base_model",
                     "pretrained_model_name_or_path"), _MODEL),
    **dict.fromkeys(("model_revision", "revision"), f"has no counterpart: {_LOCAL}"),
    "trust_remote_code": "has no counterpart: the model is Qwen3-VL, whose code transformers has",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy"),
                    "is `prism-lite export --merge --push REPO` here, after the run"),
    **dict.fromkeys(("output_dir", "out", "save_dir", "default_local_dir", "output"), _OUT),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "resume_mode"),
                    "has no counterpart: the same command with the same --out resumes"),
    "overwrite_output_dir": "has no counterpart: name another --out, or remove the folder",
    **dict.fromkeys(("report_to", "logger", "use_wandb", "wandb"), _TRACK),
    **dict.fromkeys(("run_name", "experiment_name", "project_name", "wandb_project"),
                    "has no counterpart: the run is named after --out, and the tracker's project after the "
                    "recipe (recipe=NAME)"),
    **dict.fromkeys(("max_pixels", "image_max_pixels", "min_pixels", "image_min_pixels",
                     "image_resolution", "max_image_size"),
                    "is model.max_pixels here, and model.min_pixels for the smallest picture"),
    **dict.fromkeys(("data", "dataset", "dataset_name", "train_file", "train_files", "train_dataset",
                     "dataset_id", "dataset_path", "data_path", "data_files", "path", "file", "files"),
                    _DATA),
    **dict.fromkeys(("max_samples", "max_train_samples", "train_sample_num"),
                    "is #N after the file here: data.train=FILE#500 reads its first 500 rows"),
    **dict.fromkeys(("streaming", "buffer_size", "packing", "padding_free", "group_by_length",
                     "remove_unused_columns", "preprocessing_num_workers", "dataset_num_proc",
                     "dataloader_num_workers", "num_workers", "overwrite_cache"),
                    "has no counterpart: rows are read once, and completions packed by themselves "
                    "(model.max_pack_tokens)"),
    **dict.fromkeys(("eval_dataset", "val_dataset", "val_files", "validation_file", "test_file", "eval",
                     "val", "validation", "test", "val_size", "split_dataset_ratio"), _HELDOUT),
    **dict.fromkeys(("image_folder", "images", "image_path", "image_dir", "media_dir", "image_root",
                     "images_dir"),
                    "is data.image_root here"),
    **dict.fromkeys(("system", "system_prompt", "default_system"), "is data.system_prompt here"),
    **dict.fromkeys(("image_key", "prompt_key", "answer_key", "columns", "column_mapping",
                     "image_column", "dataset_text_field"), _COLUMNS),
    **dict.fromkeys(("seed", "data_seed", "random_seed"), "is the option --seed N here, or seed=N"),
    **dict.fromkeys(("gradient_checkpointing", "enable_gradient_checkpointing",
                     "use_gradient_checkpointing"), _CHECKPOINTING),
    **dict.fromkeys(("attn_implementation", "attn_impl", "flash_attn", "use_flash_attn"),
                    "is model.attention here (auto, parts, mask, flex)"),
    **dict.fromkeys(("use_vllm", "vllm_mode", "rollout_name", "vllm_gpu_memory_utilization",
                     "gpu_memory_utilization", "fast_inference"),
                    "has no counterpart: completions are sampled in the training process "
                    "(sampling.max_rows bounds its memory)"),
    **dict.fromkeys(("deepspeed", "fsdp", "n_gpus_per_node", "nnodes", "nproc_per_node",
                     "tensor_model_parallel_size"),
                    "has no counterpart: a run uses one GPU, and `prism-lite plan --recipe NAME` says what "
                    "fits"),
    **dict.fromkeys(("stage", "train_method", "rlhf_type", "task_type", "do_train"),
                    "has no counterpart: a stage is a command here (prism-lite sft, warmup, align, rlvr; "
                    "run does all)"),
    **dict.fromkeys(("template", "chat_template"),
                    "has no counterpart: the model's own template is used (data.system_prompt sets the "
                    "instruction)"),
    "config": "is the option --recipe FILE here",
    "load_in_16bit": _QUANTISED,
    "use_rslora": _ALL_LINEAR,
    "dynamic_sampling": "is rlvr.dynamic_sampling here",
    "overlong_filter": "is rlvr.mask_truncated here",
    "dpo_beta": "is align.dpo_beta here",
    "steps": "is sft.steps, warmup.steps, align.steps, rlvr.steps here",
}  # fmt: skip


def foreign_setting(key: str) -> str | None:
    """Return what a setting of another trainer is called here, or None if the name is not known.

    Args:
        key: as the user gave it: "num_generations", "actor_rollout_ref.rollout.n", "sft.learning_rate".

    Returns:
        The rest of a sentence that begins with the key: "is rlvr.group_size here".
    """
    *parents, name = key.replace("-", "_").split(".")
    stage = parents[0] if parents and parents[0] in _STAGES else None
    if name in _BY_STAGE:
        setting, note = _BY_STAGE[name]
        return _of_stage(setting, stage) + note
    text = _FOREIGN.get(".".join([*parents[-1:], name])) or _FOREIGN.get(name)
    return text.replace("{name}", name) if text else None
