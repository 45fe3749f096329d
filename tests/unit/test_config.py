"""Recipes, overrides, and the messages for wrong ones."""

from __future__ import annotations

import dataclasses
import operator
from pathlib import Path

import pytest
import yaml

from prism_lite import load_recipe
from prism_lite.config import RunConfig
from prism_lite.config.idle import idle_setting
from prism_lite.recipe import parse_config, recipe_names, to_dict
from prism_lite.setting_names import known_keys


def test_the_default_recipe_is_the_defaults():
    assert load_recipe() == load_recipe("tiny")
    tiny, default = load_recipe("tiny").rlvr, RunConfig().rlvr
    assert (default.game, default.control) == ("off", False)  # the paper's; tiny keeps the game on
    assert tiny == dataclasses.replace(default, game="on", control=True)
    assert load_recipe("tiny").warmup.optim.schedule == RunConfig().warmup.optim.schedule
    assert "tiny" in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name):
    config = load_recipe(name)
    assert config.recipe == name
    text = yaml.safe_dump(to_dict(config))
    assert parse_config(yaml.safe_load(text)) == config


@pytest.mark.parametrize("name", recipe_names())
def test_the_longest_prompt_of_a_shipped_recipe_leaves_room_in_a_pack(name):
    config = load_recipe(name)
    room = config.model.max_pack_tokens - config.model.max_prompt_tokens
    assert config.sampling.max_completion_tokens <= room
    assert 2 * config.discriminator.max_part_tokens <= room


# What the recipes for cards change of the defaults, written out a second time on purpose.
EVERY_CARD = {
    "model.device": "cuda",
    "model.gradient_checkpointing": True,
    "model.max_cached_pictures": 4096,
    "data.task": "files",
    "sft.steps": 500,
    "sft.optim.learning_rate": 1e-4,
    "sft.optim.name": "paged_adamw8bit",
    "warmup.steps": 300,
    "warmup.pairs_per_step": 8,
    "warmup.num_prompts": 200,
    "warmup.optim.learning_rate": 2e-4,
    "discriminator.adapted_fraction": 0.25,
    "discriminator.optim.learning_rate": 1e-4,
    "align.steps": 300,
    "align.prompts_per_step": 4,
    "align.panel_every": 25,
    "align.optim.learning_rate": 1e-5,
    "align.optim.name": "paged_adamw8bit",
    "rlvr.steps": 500,
    "rlvr.prompts_per_step": 4,
    "rlvr.optim.learning_rate": 1e-5,
    "rlvr.optim.name": "paged_adamw8bit",
    "eval.num_prompts": 200,
}
COLUMNS = (
    "model.name", "model.min_gpu_gib", "model.compute_dtype", "model.max_prompt_tokens",
    "model.max_pack_tokens", "model.max_pixels", "model.picture_cache_gib",
    "sampling.max_completion_tokens", "sampling.max_rows", "discriminator.max_part_tokens",
    "sft.batch_size", "align.group_size", "rlvr.group_size", "align.panel_pairs",
)  # fmt: skip
QWEN = "Qwen/Qwen3-VL-{}B-Instruct"
CARDS = {
    "t4-2b": (QWEN.format(2), 15, "float16", 1024, 3072, 512**2, 1, 512, 32, 512, 8, 8, 8, 48),
    "t4-4b": (QWEN.format(4), 15, "float16", 1024, 2560, 512**2, 1, 512, 32, 384, 8, 8, 8, 48),
    "rtx3060-2b": (QWEN.format(2), 12, "bfloat16", 1024, 3072, 512**2, 1, 512, 32, 512, 8, 8, 8, 48),
    "rtx4090-4b": (QWEN.format(4), 24, "bfloat16", 1024, 4608, 512**2, 1, 1024, 32, 1024, 8, 8, 8, 48),
    "rtx4090-8b": (QWEN.format(8), 24, "bfloat16", 1024, 3328, 512**2, 1, 768, 32, 384, 8, 8, 8, 48),
    "a100-8b": (
        QWEN.format(8), 40, "bfloat16", 2048, 8192, 768**2, 2, 1536, 64, 1024, 16, 16, 16, 32,
    ),
    "paper-4b": (
        QWEN.format(4), 80, "bfloat16", 2048, 12288, 1024**2, 2, 8192, 32, 4096, 128, 16, 16, 48,
    ),
}  # fmt: skip
PAPER = {
    "lora.rank": 64,
    "lora.alpha": 128,
    "sft.steps": 10703,
    "sft.optim.learning_rate": 1e-5,
    "warmup.steps": 1875,
    "warmup.pairs_per_step": 128,
    "warmup.group_size": 1,
    "warmup.num_prompts": 120_000,
    "warmup.corrupted_fraction": 0.0,
    "warmup.patience": 0,
    "warmup.optim.learning_rate": 1e-5,
    "discriminator.reasoning_sees_caption": False,
    "discriminator.optim.learning_rate": 1e-6,
    "align.steps": 500,
    "align.optim.learning_rate": 1e-6,
    "rlvr.steps": 1500,
    "rlvr.prompts_per_step": 32,
    "rlvr.optim.learning_rate": 1e-6,
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_recipe_is_the_defaults_with_these_changes(name, tmp_path):
    changes = EVERY_CARD | dict(zip(COLUMNS, CARDS[name], strict=True))
    changes |= PAPER if name == "paper-4b" else {}
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text("")
    assert load_recipe(name) == load_recipe(defaults, {"recipe": name} | changes)


def test_every_recipe_but_the_tiny_ones_is_a_card_of_the_table():
    assert {*CARDS, "tiny", "tiny-files"} == set(recipe_names())


def write_recipes(folder: Path, **texts: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_recipe_extends_a_shipped_one_or_a_file_beside_it(tmp_path):
    write_recipes(
        tmp_path / "inner",
        grandparent="extends: t4-2b\nsft: {steps: 3, optim: {warmup_ratio: 0.5}}\nseed: 1\n",
        parent="extends: grandparent.yaml\nsft: {batch_size: 5}\nrlvr: {rewards: {ocr: 1}}\nseed: 2\n",
    )
    write_recipes(
        tmp_path, mine="extends: inner/parent.yaml\nrlvr: {rewards: {boxes: 2}}\nseed: 3\n"
    )
    expected = {
        "recipe": "mine",
        "sft.steps": 3,
        "sft.optim.warmup_ratio": 0.5,
        "sft.batch_size": 5,
        "rlvr.rewards": {"boxes": 2.0},
        "seed": 3,
    }
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("t4-2b", expected)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("mine.yaml", r"mine\.yaml extends mine\.yaml"),
        ("other.yaml", r"mine\.yaml extends other\.yaml extends mine\.yaml"),
        ("lost.yaml", r"mine\.yaml extends 'lost\.yaml'"),
        ("[t4-2b]", r"extends = \['t4-2b'\], expected the name or the file of one recipe"),
        ("list.yaml", r"list\.yaml must be a mapping"),
    ],
)
def test_a_wrong_extends_is_refused(tmp_path, base, message):
    write_recipes(tmp_path, mine=f"extends: {base}\n", other="extends: mine.yaml\n", list="- a\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_extends_is_for_recipe_files():
    with pytest.raises(ValueError, match="unknown setting 'extends'"):
        load_recipe("tiny", {"extends": "t4-2b"})


def test_a_completion_that_does_not_fit_a_pack_is_refused_with_the_settings():
    sizes = {"model.max_pack_tokens": 1024, "sampling.max_completion_tokens": 1024}
    with pytest.raises(ValueError, match=r"max_completion_tokens = 1024 .*max_pack_tokens = 1024"):
        load_recipe("tiny", sizes)
    load_recipe("tiny", sizes | {"sampling.max_completion_tokens": 1023})


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("align.group_size=16", ("align", "group_size"), 16),
        ("align.optim.learning_rate=1e-3", ("align", "optim", "learning_rate"), 1e-3),
        ("discriminator.routing=free", ("discriminator", "routing"), "free"),
        ("discriminator.likelihood_features=false", ("discriminator", "likelihood_features"), 0),
        ("data.digits.kinds=[sum, count]", ("data", "digits", "kinds"), ("sum", "count")),
        ("seed=7", ("seed",), 7),
    ],
)
def test_an_override_changes_one_value(override, path, value):
    config = load_recipe("tiny", [override])
    assert operator.attrgetter(".".join(path))(config) == value
    changed = to_dict(config)
    default = to_dict(load_recipe("tiny"))
    for name in path[:-1]:
        changed, default = changed[name], default[name]
    del changed[path[-1]], default[path[-1]]
    assert changed == default


def test_an_overlay_keeps_what_it_does_not_set(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("sft:\n  optim:\n    learning_rate: 0.5\n")
    config = load_recipe(file)
    default = RunConfig().sft.optim
    assert config.sft.optim == dataclasses.replace(default, learning_rate=0.5)
    assert config.recipe == "mine"
    assert load_recipe(file, {"sft.optim.learning_rate": 0.25}).sft.optim.learning_rate == 0.25


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("align.grup_size", "align.group_size"),
        ("aling.group_size", "align.group_size"),
        ("rlvr.group_sise", "rlvr.group_size"),
        ("sampling.temprature", "sampling.temperature"),
        ("sft.optim.learnin_rate", "sft.optim.learning_rate"),
        ("sed", "seed"),
        ("discriminator.num_expert", "discriminator.num_experts"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError) as caught:
        load_recipe("tiny", {wrong: 1})
    message = str(caught.value)
    assert nearest in message
    assert wrong.partition(".")[0] in message or wrong in message
    assert "\n" not in message


@pytest.mark.parametrize("wrong", ["group_size", "learning_rate", "zzz", "align.zzz", "seed.x"])
def test_an_unknown_key_without_a_near_one_is_still_one_sentence(wrong):
    with pytest.raises(ValueError) as caught:
        load_recipe("tiny", {wrong: 1})
    assert "\n" not in str(caught.value)
    assert wrong.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("align.group_size", "many"),
        ("align.group_size", 2.5),
        ("align.group_size", 1),
        ("align.group_size", 0),
        ("align.group_size", -4),
        ("align.alpha", 1.5),
        ("align.alpha", -0.1),
        ("rlvr.group_size", 1),
        ("sampling.temperature", -1),
        ("sft.optim.learning_rate", 0),
        ("sft.optim.warmup_ratio", 1.5),
        ("sft.optim.schedule", "sinus"),
        ("discriminator.routing", "random"),
        ("discriminator.num_experts", 7),
        ("discriminator.top_k", 5),
        ("discriminator.adapted_fraction", 1.5),
        ("data.digits.max_digits", 9),
        ("data.digits.min_digits", 6),
        ("data.digits.min_digits", 1),
        ("data.digits.kinds", ["product"]),
        ("data.digits.kinds", []),
        ("data.digits.demonstration_slip_rate", 1.5),
        ("warmup.mismatched_fraction", 2.0),
        ("model.quantization", "int8"),
        ("sft.optim.learning_rate", float("nan")),
        ("seed", "zero"),
    ],
)
def test_a_wrong_value_is_refused_by_key(key, value):
    with pytest.raises(ValueError) as caught:
        load_recipe("tiny", {key: value})
    message = str(caught.value)
    assert key.rpartition(".")[2] in message
    assert "\n" not in message


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3


@pytest.mark.parametrize("content", ["- a\n- b\n", "align: [\n", "just text"])
def test_a_broken_recipe_file_is_refused_by_name(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_recipe(file)


def test_a_missing_recipe_names_the_shipped_ones():
    with pytest.raises(ValueError, match="tiny"):
        load_recipe("t5-11b")


@pytest.mark.parametrize("override", ["align.group_size", "=3", ""])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(ValueError, match="key=value"):
        load_recipe("tiny", [override])


def test_known_keys_are_those_of_the_resolved_settings():
    def leaves(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict) and name not in ("columns", "rewards"):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    assert sorted(known_keys()) == sorted(leaves(to_dict(RunConfig())))


def test_a_temperature_of_zero_is_refused_for_training():
    with pytest.raises(ValueError, match=r"sampling\.temperature = 0"):
        load_recipe("tiny", ["sampling.temperature=0"])


def test_an_override_that_is_not_yaml_names_itself():
    with pytest.raises(ValueError, match=r"override 'data\.train=\{a'"):
        load_recipe("tiny", ["data.train={a"])


# The official numbers of each preset, written out a second time on purpose.
OFFICIAL = {
    "grpo": {
        "loss.name": "dapo",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.2,
        "loss.clip_dual": 3.0,
    },
    "dapo": {
        "loss.name": "dapo",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.28,
        "loss.clip_dual": 10.0,
        "dynamic_sampling": True,
        "rewards": {"accuracy": 0.8, "format": 0.2, "overlong": 1.0},
    },
    "gspo": {
        "loss.name": "gspo",
        "loss.clip_low": 3e-4,
        "loss.clip_high": 4e-4,
        "loss.clip_dual": None,
    },
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("recipe", ["tiny", "t4-2b"])
def test_a_preset_carries_the_official_numbers(name, recipe):
    common = {
        "rewards": {"accuracy": 0.8, "format": 0.2},
        "kl_weight": 0.0,
        "scale": "group",
        "dynamic_sampling": False,
    }
    rlvr = load_recipe(recipe, {"rlvr.preset": name}).rlvr
    for key, value in (common | OFFICIAL[name]).items():
        assert operator.attrgetter(key)(rlvr) == value, key


def test_a_preset_fills_only_what_the_recipe_leaves_open():
    loss = load_recipe("tiny", {"rlvr.preset": "gspo", "rlvr.loss.clip_high": 0.5}).rlvr.loss
    assert (loss.name, loss.clip_low, loss.clip_high) == ("gspo", 3e-4, 0.5)
    dapo = parse_config(to_dict(load_recipe("tiny", {"rlvr.preset": "dapo"}))).rlvr
    assert dapo.loss.clip_dual == 10


def test_the_loss_of_alignment_is_not_touched_by_the_preset_of_rlvr():
    config = load_recipe("tiny", {"rlvr.preset": "gspo", "align.loss.name": "cispo"})
    assert config.align.loss == dataclasses.replace(RunConfig().align.loss, name="cispo")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rlvr.rewards={ocr: 1}"], {"ocr": 1.0}),
        (["rlvr.rewards.ocr=0.5"], {"accuracy": 0.8, "format": 0.2, "ocr": 0.5}),
        (["rlvr.rewards.format=0.5"], {"accuracy": 0.8, "format": 0.5}),
        (
            ["rlvr.rewards.ocr=0.5", "rlvr.preset=dapo"],
            {"accuracy": 0.8, "format": 0.2, "overlong": 1.0, "ocr": 0.5},
        ),
        (["rlvr.preset=dapo", "rlvr.rewards={boxes: 2}"], {"boxes": 2.0}),
        (["rlvr.rewards.boxes=-1", "rlvr.rewards={ocr: 1}"], {"ocr": 1.0, "boxes": -1.0}),
        (
            ["rlvr.rewards.path/to/my.py:brevity=1", "rlvr.rewards.my.module:other=2"],
            {
                "accuracy": 0.8,
                "format": 0.2,
                f"{Path.cwd()}/path/to/my.py:brevity": 1.0,
                "my.module:other": 2.0,
            },
        ),
    ],
)
def test_rewards_are_replaced_by_a_mapping_and_added_to_by_a_name(overrides, expected):
    assert load_recipe("tiny", overrides).rlvr.rewards == expected


def test_a_reward_is_added_to_those_of_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rlvr: {preset: dapo, rewards: {accuracy: 1.0}}\n")
    assert load_recipe(file).rlvr.rewards == {"accuracy": 1.0}
    assert load_recipe(file, ["rlvr.rewards.ocr=0.5"]).rlvr.rewards == {"accuracy": 1.0, "ocr": 0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rlvr.algorithm=gspo", "rlvr.algorithm is now called rlvr.preset"),
        ("rlvr.loss=gspo", "rlvr.loss.name=gspo"),
        ("rlvr.clip_high=0.3", "rlvr.loss.clip_high"),
        ("rlvr.entropy_weight=0.1", "rlvr.loss.entropy_weight"),
        ("rlvr.ocr_weight=0.1", "rlvr.rewards.ocr"),
        ("align.length_debias=1", "align.length_debias was removed"),
        ("rlvr.kl_kind=full", "rlvr.kl_kind = full was removed"),
        ("rlvr.kl_kind=abs", "rlvr.kl_kind = abs was removed"),
    ],
)
def test_an_old_setting_names_the_new_one(override, words):
    with pytest.raises(ValueError) as caught:
        load_recipe("tiny", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_is_grpo():
    assert load_recipe("tiny") == load_recipe("tiny", {"rlvr.preset": "grpo"})


def test_presets_are_not_recipes():
    assert not set(OFFICIAL) & set(recipe_names())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rlvr.preset": "ppo"}, "preset"),
        ({"rlvr.loss.name": "ppo"}, r"loss\.name"),
        ({"rlvr.loss.clip_dual": 0.9}, "clip_dual"),
        ({"rlvr.loss.clip_high": float("inf")}, "clip_high"),
        ({"rlvr.rewards.format": 0}, r"rlvr\.rewards\.format = 0 .*leave the name out"),
        ({"rlvr.rewards.format": float("nan")}, r"rlvr\.rewards\.format"),
        ({"rlvr.rewards": {}}, r"rlvr\.rewards is empty"),
        ({"rlvr.rewards.acuracy": 1}, "did you mean accuracy"),
        ({"rlvr.rewards.my/file.py:format": 1}, "two rewards called format"),
        ({"align.replay_fraction": 1.0}, "replay_fraction"),
        ({"align.method": "dpo", "align.mode": "rlvr"}, "align.mode = rlvr"),
        ({"rlvr.rewards.judge": 0.5, "rlvr.judge.model": "m"}, r"rlvr\.judge\.base_url"),
        ({"model.offload_checkpoints": True}, "model.gradient_checkpointing=true too"),
        ({"rlvr.combine": "normalize_then_sum", "rlvr.scale": "none"}, "rlvr.combine"),
    ],
)
def test_policy_settings_that_make_no_sense_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "instead"),
    [
        (["data.num_sft=5", "data.task=files"], "data.task=digits"),
        (["data.on_bad_row=skip"], "data.task=files"),
        (["eval.num_inside=8"], "eval.every"),
        (["warmup.steps=5", "align.method=dpo", "rlvr.game=off"], "method=adversarial"),
        (["align.alpha=0.3", "align.method=sft", "rlvr.game=off"], "method=adversarial"),
        (["align.replay_fraction=0.5", "align.method=sft", "rlvr.game=on"], "adversarial"),
        (["discriminator.top_k=1", "discriminator.routing=dense"], "routing=grouped"),
        (["align.weight=0.5", "rlvr.game=off"], "align.mode"),
        (["align.wrong_penalty=0.5", "align.mode=rlvr"], "align.mode=gated"),
        (["rlvr.kl_reference=base"], "rlvr.kl_weight"),
        (["rlvr.loss.clip_high=0.3"], "rlvr.num_minibatches=2"),
        (["rlvr.loss.clip_low=0.3", "rlvr.num_minibatches=2", "rlvr.loss.name=cispo"], "dapo"),
        (["align.loss.sapo_temperature_positive=2"], "align.loss.name=sapo"),
        (["rlvr.judge.model=x"], "rlvr.rewards.judge"),
    ],
)
def test_a_setting_without_effect_is_named_with_what_would_give_it_one(overrides, instead):
    key = overrides[0].partition("=")[0]
    problem = idle_setting(load_recipe("tiny", overrides), key)
    assert problem is not None and problem.startswith(f"{key} has no effect with ")
    assert instead in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ["align.alpha=0.3"],
        ["warmup.steps=5", "align.method=dpo", "rlvr.game=on"],
        ["align.weight=0.5", "rlvr.game=on"],
        ["align.group_size=4", "align.method=best_of_n"],
        ["rlvr.kl_weight=0"],
        ["rlvr.kl_kind=k2", "rlvr.kl_weight=0.1"],
        ["rlvr.loss.clip_high=0.3", "rlvr.num_minibatches=2"],
        ["rlvr.loss.clip_high=0.3", "rlvr.teacher_rollout=true", "rlvr.game=off"],
        ["rlvr.rewards.format=0.5"],
    ],
)
def test_a_setting_with_an_effect_is_accepted(overrides):
    assert idle_setting(load_recipe("tiny", overrides), overrides[0].partition("=")[0]) is None
