"""Recipes, overrides and the sentences for what is wrong with them."""

from __future__ import annotations

import dataclasses
import operator

import pytest
import yaml

from prism_lite import load_recipe
from prism_lite.config import RunConfig
from prism_lite.recipe import known_keys, parse_config, recipe_names, to_dict


def test_the_default_recipe_is_the_defaults():
    assert load_recipe() == load_recipe("tiny")
    assert load_recipe("tiny").rlvr == RunConfig().rlvr
    assert load_recipe("tiny").warmup.optim.schedule == RunConfig().warmup.optim.schedule
    assert "tiny" in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_goes_there_and_back(name):
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


def test_a_completion_that_fits_no_pack_is_refused_with_the_settings():
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
    found = config
    for name in path:
        found = getattr(found, name)
    assert found == value
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
        ("data.digits.min_digits", 5),
        ("data.digits.min_digits", 1),
        ("data.digits.kinds", ["product"]),
        ("data.digits.kinds", []),
        ("data.digits.demonstration_slip_rate", 1.5),
        ("data.digits.teacher_caption_weights", [1.0, 0.0]),
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


def test_an_override_that_is_no_yaml_names_itself():
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
    rlvr = load_recipe(recipe, {"rlvr.preset": name, "data.train": "x"}).rlvr
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
            {"accuracy": 0.8, "format": 0.2, "path/to/my.py:brevity": 1.0, "my.module:other": 2.0},
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
