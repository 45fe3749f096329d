"""What users of other trainers type leads to our setting or option, in one sentence."""

from __future__ import annotations

import re

import pytest

from prism_lite.__main__ import _overrides
from prism_lite.foreign_settings import _BY_STAGE, _FOREIGN, foreign_setting
from prism_lite.recipe import load_recipe
from prism_lite.setting_names import known_keys

# (as TRL, LLaMA-Factory, ms-swift, Unsloth or verl call it, ours)
NAMES = [
    ("lr", "sft.optim.learning_rate"),
    ("learning_rate", "rlvr.optim.learning_rate"),
    ("sft.learning_rate", "sft.optim.learning_rate"),
    ("warmup.learning_rate", "warmup.optim.learning_rate"),
    ("per_device_train_batch_size", "sft.batch_size"),
    ("gradient_accumulation_steps", "model.max_pack_tokens"),
    ("num_train_epochs", "sft.steps"),
    ("max_steps", "rlvr.steps"),
    ("num_generations", "rlvr.group_size"),
    ("actor_rollout_ref.rollout.n", "rlvr.group_size"),
    ("rollout.n", "rlvr.group_size"),
    ("max_prompt_length", "model.max_prompt_tokens"),
    ("max_completion_length", "sampling.max_completion_tokens"),
    ("beta", "rlvr.kl_weight"),
    ("algorithm.kl_ctrl.kl_coef", "rlvr.kl_weight"),
    ("save_steps", "save_every"),
    ("load_in_4bit", "model.quantization"),
    ("lora_r", "lora.rank"),
    ("lora_alpha", "lora.alpha"),
    ("model_name_or_path", "model.name"),
    ("model", "model.name"),
    ("output_dir", "--out"),
    ("report_to", "track"),
    ("temperature", "sampling.temperature"),
    ("top_p", "sampling.top_p"),
    ("epsilon", "rlvr.loss.clip_low"),
    ("bf16", "model.compute_dtype"),
    ("fp16", "model.compute_dtype"),
    ("max_pixels", "model.max_pixels"),
    ("dataset", "data.train"),
    ("image_folder", "data.image_root"),
    ("system", "data.system_prompt"),
    ("warmup_ratio", "sft.optim.warmup_ratio"),
    ("lr_scheduler_type", "sft.optim.schedule"),
    ("actor_rollout_ref.model.path", "model.name"),
    ("data.path", "data.train"),
    ("max_samples", "data.train"),
    ("resume", "--out"),
    ("use_cpu", "model.device"),
    ("lora.dropout", "lora.rank"),
    ("val_size", "data.heldout"),
    ("push_to_hub", "--push"),
    ("num_samples", "rlvr.group_size"),
]


@pytest.mark.parametrize(("name", "ours"), NAMES)
def test_a_foreign_name_leads_to_ours(name, ours):
    with pytest.raises(ValueError, match=r"is .* here|no counterpart") as refused:
        load_recipe("tiny", [f"{name}=1"])
    assert ours in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not ours.count(".") or ours in known_keys()


def test_seed_and_one_tracker_are_accepted_as_they_are():
    config = load_recipe("tiny", ["seed=3", "track=wandb"])
    assert (config.seed, config.track) == (3, ("wandb",))


@pytest.mark.parametrize("flag", ["--bf16", "--load-in-4bit", "--gradient-checkpointing"])
def test_a_flag_without_a_value_leads_to_ours(flag):
    with pytest.raises(ValueError, match="model\\."):
        _overrides([flag])


def test_a_recipe_without_its_option():
    with pytest.raises(ValueError, match=r"--recipe mine\.yaml"):
        _overrides(["mine.yaml"])


def test_every_setting_that_is_named_exists():
    """A dotted name in a text is a setting of ours, and so is each name by stage."""
    texts = [*_FOREIGN.values(), *(foreign_setting(name) or "" for name in _BY_STAGE)]
    named = {name for text in texts for name in re.findall(r"\b[a-z]\w*(?:\.[a-z]\w+)+", text)}
    files = {"metrics.jsonl", "file.py"}
    assert not named - set(known_keys()) - files


def test_no_setting_of_ours_is_taken_for_a_foreign_one():
    sections = {key.rpartition(".")[0] for key in known_keys()}
    for key in known_keys():  # none is refused before it is checked
        if key in _FOREIGN:
            assert key in ("seed",), key
    assert foreign_setting("align.grup_size") is None
    assert "rlvr.loss" in sections
