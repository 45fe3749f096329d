"""Recipes: YAML overlays on the settings of `prism_lite.config`, with overrides, checked as a whole.

`load_recipe(name_or_file, overrides)` reads a recipe over the one it `extends`, applies `key=value`
overrides and checks every value. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from prism_lite.config import RlvrConfig, RunConfig
from prism_lite.config.checks import check_across_fields
from prism_lite.setting_names import first_problem, known_keys, renamed_setting

RECIPES = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, without their shared bases."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


def recipe_settings(name: str) -> dict[str, Any]:
    """Return what a shipped recipe and those that it extends set, by dotted key, except its name.

    Args:
        name: a recipe, or "rlvr.preset=dapo" for a preset of RLVR.
    """
    preset = name.removeprefix("rlvr.preset=")
    if preset != name:
        return dict(_leaves({"rlvr": _preset_settings({"rlvr": {"preset": preset}})}))
    values = _read_recipe(_recipe_path(name, Path()))
    return {key: value for key, value in _leaves(values) if key != "recipe"}


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
    return _with_absolute_paths(parse_config(values))


def _recipe_path(recipe: str | Path, folder: Path) -> Path:
    """Return the file of a shipped recipe, or a file relative to `folder`."""
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
    try:
        base_path = _recipe_path(base, path.parent)
    except ValueError as error:
        raise ValueError(f"recipe {path} extends {base!r}: {error}") from None
    return _merged(_read_recipe(base_path, chain), values)


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return settings with others at some dotted keys.

    Raises:
        ValueError: as `load_recipe`.
    """
    values = to_dict(config)
    for key, value in overrides.items():
        _set_dotted(values, key, value)
    return parse_config(values)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return settings whose existing files and folders are named from the root.

    So a run is resumed and evaluated from any folder; names that do not exist here are hub ids.
    """
    keys = ("data.train", "data.warmup", "data.align", "data.rlvr", "data.heldout",
            "data.image_root", "sft.start_from", "model.name")  # fmt: skip
    paths = {}
    for key in keys:
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if value is None or value == "tiny":
            continue
        path, count, number = value, "", ""
        if not Path(path).exists():  # rows.jsonl#100: its first rows
            path, count, number = value.rpartition("#")
        if path and Path(path).exists():
            paths[key] = f"{Path(path).absolute()}{count}{number}"
    rewards = {_absolute_reward(name): weight for name, weight in config.rlvr.rewards.items()}
    if rewards != config.rlvr.rewards:
        paths["rlvr.rewards"] = rewards
    return with_overrides(config, paths) if paths else config


def _absolute_reward(name: str) -> str:
    file, _, function = name.rpartition(":")
    return f"{Path(file).absolute()}:{function}" if file.endswith(".py") else name


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping of settings and build the RunConfig.

    Raises:
        ValueError: as `load_recipe`.
    """
    for key, value in _leaves(values):
        if problem := renamed_setting(key, value):
            raise ValueError(problem)
    try:
        # Over the defaults: a recipe that sets only a stage's learning rate keeps its schedule.
        defaults = _merged(to_dict(RunConfig()), {"rlvr": _preset_settings(values)})
        config = settings_adapter().validate_python(_merged(defaults, values))
    except pydantic.ValidationError as error:
        raise ValueError(first_problem(error)) from None
    check_across_fields(config)
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
    """Yield every setting by its dotted key; rlvr.rewards is one of them."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known_keys():
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def read_run(path: str | Path) -> RunConfig:
    """Return the settings of a run folder.

    Raises:
        ValueError: the folder does not hold a run.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"--run {path} is not a run folder: config.yaml is missing.")
    try:
        return parse_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValueError as error:  # of a run of an earlier version
        raise ValueError(f"{file}: {error}") from None


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return plain nested values, as written to config.yaml."""
    return settings_adapter().dump_python(config, mode="json")


@functools.cache
def settings_adapter() -> pydantic.TypeAdapter[RunConfig]:
    """Return what checks, dumps and describes the settings."""
    return pydantic.TypeAdapter(RunConfig)


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
                f"override {text!r}: the value is not valid YAML; quote it if it is text."
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
            raise ValueError(f"{key}: {parent} is a single value and has no settings inside it.")
    values[leaf] = value
