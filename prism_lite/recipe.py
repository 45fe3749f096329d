"""Recipes: YAML overlays on the settings of `config.py`, with overrides, checked as a whole.

`load_recipe(name_or_file, overrides)` reads a recipe over the one it `extends`, applies `key=value`
overrides and checks every value. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml

from prism_lite.config import BUILT_IN_REWARDS, PolicyLoss, RlvrConfig, RunConfig

RECIPES = Path(__file__).with_name("recipes")
_LOSS_SETTINGS = (
    "clip_low", "clip_high", "clip_dual", "sapo_temperature_positive", "sapo_temperature_negative",
    "entropy_weight",
)  # fmt: skip
# Settings ("key") and values ("key=value") of earlier versions, and what has become of them.
_OLD_SETTINGS = {
    "rlvr.algorithm": "is now called rlvr.preset",
    "align.length_debias": "was removed: no recipe used it, and no measurement showed a gain",
    "rlvr.kl_kind=abs": "was removed: it does not estimate the KL divergence; use k2 or k3",
    "rlvr.kl_kind=full": "was removed: k3 estimates the same from the sampled tokens; use k3",
    **{f"rlvr.loss={name}": f"is now rlvr.loss.name={name}" for name in get_args(PolicyLoss)},
    **{f"rlvr.{name}": f"is now called rlvr.loss.{name}" for name in _LOSS_SETTINGS},
    **{
        f"rlvr.{name}_weight": f"is now called rlvr.rewards.{name}; a reward of weight 0 is left out"
        for name in BUILT_IN_REWARDS
    },
}


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, without their shared bases."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


def load_recipe(
    recipe: str | Path = "tiny", overrides: Sequence[str] | Mapping[str, Any] = ()
) -> RunConfig:
    """Read a recipe and apply overrides.

    Args:
        recipe: a shipped name ("tiny") or a YAML file.
        overrides: "align.group_size=8" strings, or a mapping of dotted keys to values.
            `rlvr.rewards.NAME=WEIGHT` sets one reward and keeps the others; NAME may hold dots.

    Raises:
        ValueError: the recipe does not exist or extends itself, a key is unknown (the nearest one is
            named), or a value has the wrong type or range.
    """
    values = _read_recipe(_recipe_path(recipe, Path()))
    # Single rewards last: they are added to those of the recipe, or of the preset that is then known.
    items = _override_items(overrides)
    for key, value in sorted(items, key=lambda item: item[0].startswith("rlvr.rewards.")):
        _set_dotted(values, key, value)
    return parse_config(values)


def _recipe_path(recipe: str | Path, folder: Path) -> Path:
    """Return the file of a shipped recipe, or of a file relative to `folder`."""
    for path in (RECIPES / f"{recipe}.yaml", folder / recipe):
        if path.is_file():
            return path
    raise ValueError(
        f"no recipe {str(recipe)!r}: give one of {', '.join(recipe_names())}, or a YAML file."
    )


def _read_recipe(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe file over the recipes that it extends."""
    chain = (*extended_by, path.resolve())
    if len(set(chain)) < len(chain):
        names = " extends ".join(file.name for file in chain)
        raise ValueError(f"recipe {chain[0]} has a circle: {names}. Remove one of these `extends`.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"recipe {path} must be a mapping of settings, got {type(values).__name__}."
        )
    values = {"recipe": path.stem} | values
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if not isinstance(base, str):
        raise ValueError(
            f"recipe {path}: extends = {base!r}, expected the name or the file of one recipe."
        )
    return _merged(_read_recipe(_recipe_path(base, path.parent), chain), values)


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return settings with others at some dotted keys.

    Raises:
        ValueError: as `load_recipe`.
    """
    values = to_dict(config)
    for key, value in overrides.items():
        _set_dotted(values, key, value)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping of settings and build the RunConfig.

    Raises:
        ValueError: as `load_recipe`.
    """
    for key, value in _leaves(values):
        change = _OLD_SETTINGS.get(key)
        if change is None and (change := _OLD_SETTINGS.get(f"{key}={value}")):
            key = f"{key} = {value}"
        if change:
            raise ValueError(f"setting {key} {change}.")
    try:
        # Over the defaults: a recipe that sets only a stage's learning rate keeps its schedule.
        defaults = _merged(to_dict(RunConfig()), {"rlvr": _preset_settings(values)})
        config = pydantic.TypeAdapter(RunConfig).validate_python(_merged(defaults, values))
    except pydantic.ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    _check_across_fields(config)
    return config


def _preset_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `rlvr.preset` sets; an unknown one sets nothing and fails the check of values."""
    rlvr = values.get("rlvr")
    name = rlvr.get("preset") if isinstance(rlvr, Mapping) else None
    path = RECIPES / "rlvr" / f"{name or RlvrConfig.preset}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Merge section by section; a setting whose value is a mapping (rlvr.rewards) is replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        is_section = f"{prefix}{key}" not in known_keys()
        if is_section and isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _merged(below, value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_run(path: str | Path) -> RunConfig:
    """The settings of a run folder.

    Raises:
        ValueError: the folder holds no run.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"--run {path} holds no run: config.yaml is missing.")
    return parse_config(yaml.safe_load(file.read_text(encoding="utf-8")))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, as written to config.yaml."""
    return pydantic.TypeAdapter(RunConfig).dump_python(config, mode="json")


def _override_items(overrides: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    items = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(
                f"override {text!r} is not of the form key=value (align.group_size=8)."
            )
        try:
            items.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ValueError(
                f"override {text!r}: the value is not valid YAML; quote it if it is a text."
            ) from error
    return items


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    if key.startswith("rlvr.rewards."):
        parents, leaf = ["rlvr", "rewards"], key.removeprefix("rlvr.rewards.")
        rlvr = values.get("rlvr")
        if not isinstance(rlvr, dict) or "rewards" not in rlvr:
            _set_dotted(values, "rlvr.rewards", _preset_settings(values).get("rewards", {}))
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key}: {parent} is a single value, it has no settings of its own.")
    values[leaf] = value


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key that a recipe or override may set."""

    def walk(value: Any, prefix: str) -> list[str]:
        keys = []
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            name = f"{prefix}{item.name}"
            keys += walk(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [name]
        return keys

    return tuple(walk(RunConfig(), ""))


def _first_problem(error: pydantic.ValidationError) -> str:
    """One sentence for the first thing that is wrong with the settings."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        leaf = key.rpartition(".")[2]
        sections = sorted({name.partition(".")[0] for name in known_keys()})
        near = (
            difflib.get_close_matches(key, known_keys(), 1, 0.6)
            or [name for name in known_keys() if name.rpartition(".")[2] == leaf]
            or difflib.get_close_matches(key, sections, 1, 0.6)
        )
        if near and isinstance(problem["input"], Mapping) and problem["input"]:
            key = f"{key}.{next(iter(problem['input']))}"
            near = difflib.get_close_matches(key, known_keys(), 1, 0.6) or near
        hint = f"did you mean {near[0]}?" if near else f"top-level keys: {', '.join(sections)}."
        return f"unknown setting {key!r}: {hint}"
    return f"setting {key} = {problem['input']!r}: {problem['msg'].lower()}."


def _check_across_fields(config: RunConfig) -> None:
    disc, digits = config.discriminator, config.data.digits
    if disc.routing == "grouped" and disc.num_experts % 2:
        raise ValueError(
            f"discriminator.num_experts = {disc.num_experts} cannot be split into a perception and a "
            "reasoning half: give an even number, or routing: free."
        )
    per_group = disc.num_experts // 2 if disc.routing == "grouped" else disc.num_experts
    if disc.routing != "dense" and disc.top_k > per_group:
        raise ValueError(
            f"discriminator.top_k = {disc.top_k} is more than the {per_group} experts a token may use."
        )
    if not digits.min_digits <= digits.max_digits <= 6:
        raise ValueError(
            f"data.digits: min_digits = {digits.min_digits}, max_digits = {digits.max_digits}; "
            "expected min <= max <= 6."
        )
    if config.sampling.temperature == 0:
        raise ValueError(
            "sampling.temperature = 0: all rollouts of a group would be the same. Expected more than "
            "0; evaluation samples greedily by itself."
        )
    # Whether each row fits with its own prompt is found when the rows are read (reading.py).
    if config.sampling.max_completion_tokens >= config.model.max_pack_tokens:
        raise ValueError(
            f"sampling.max_completion_tokens = {config.sampling.max_completion_tokens} fits no pack of "
            f"model.max_pack_tokens = {config.model.max_pack_tokens} behind a prompt: lower the one or "
            "raise the other."
        )
    if config.model.offload_checkpoints and not config.model.gradient_checkpointing:
        raise ValueError(
            "model.offload_checkpoints = true moves the checkpoints of gradient checkpointing, which is "
            "off: set model.gradient_checkpointing=true too."
        )
    rlvr = config.rlvr
    _check_rewards(rlvr)
    if rlvr.combine == "normalize_then_sum" and rlvr.scale != "group":
        raise ValueError(
            f"rlvr.combine = normalize_then_sum standardises each reward in its group by itself: it "
            f"has no use for rlvr.scale = {rlvr.scale!r}. Leave rlvr.scale at group."
        )
    if config.align.method != "adversarial" and config.align.mode != "align":
        raise ValueError(
            f"align.mode = {config.align.mode} combines the discriminator's scores with rewards, and "
            f"align.method = {config.align.method} has no discriminator. Set one of them back."
        )
    for stage, group_size in (("align", config.align.group_size), ("rlvr", config.rlvr.group_size)):
        if group_size < 2:
            raise ValueError(
                f"{stage}.group_size = {group_size}: a group needs at least 2 rollouts."
            )


def _check_rewards(rlvr: RlvrConfig) -> None:
    if not rlvr.rewards:
        raise ValueError("rlvr.rewards is empty: name at least one reward, as {accuracy: 1.0}.")
    for name, weight in rlvr.rewards.items():
        if ":" not in name and name not in BUILT_IN_REWARDS:
            near = difflib.get_close_matches(name, BUILT_IN_REWARDS, 1, 0.6)
            raise ValueError(
                f"rlvr.rewards.{name}: expected {', '.join(BUILT_IN_REWARDS)}, package.module:function "
                f"or path/to/file.py:function{f'; did you mean {near[0]}?' if near else '.'}"
            )
        if weight == 0:
            raise ValueError(
                f"rlvr.rewards.{name} = 0 has no effect: leave the name out of rlvr.rewards, as in "
                "rlvr.rewards='{accuracy: 1.0}'."
            )
    function_names = [name.rpartition(":")[2] for name in rlvr.rewards]
    for name in function_names:
        if function_names.count(name) > 1:
            raise ValueError(
                f"rlvr.rewards has two rewards called {name}, and metrics are named after them: "
                "rename one of the functions."
            )
    if "judge" in rlvr.rewards and not (rlvr.judge.base_url and rlvr.judge.model):
        raise ValueError(
            "rlvr.rewards has judge, and the judge is not named: set rlvr.judge.base_url (like "
            "http://localhost:8000/v1) and rlvr.judge.model."
        )
