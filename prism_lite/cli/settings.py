"""`prism-lite settings`: what settings mean, their values and defaults, and the recipes that set them."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, get_args

_WIDTH = 80
_TYPES = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true | false",
    "null": "null",
}


@dataclass(frozen=True)
class _Setting:
    """One setting as it is printed, with the section that it belongs to."""

    section: str
    title: str
    key: str
    text: str
    values: str
    default: str

    def lines(self, recipes: Sequence[str]) -> Iterator[str]:
        yield _wrapped(f"{self.key} = {self.default}   ({self.values})")
        yield _wrapped(self.text, first="    ")
        for line in recipes:
            yield _wrapped(line, first="    ", rest="        ")
        yield ""


def add_command(commands: Any) -> None:
    """Add `settings` to the command line's subparsers."""
    command = commands.add_parser("settings", help="explain settings and their allowed values")
    command.add_argument(
        "topic", nargs="?", metavar="SECTION|WORD",
        help="a section (rlvr.loss), a setting, or a word of its name or meaning; default: all",
    )  # fmt: skip
    command.set_defaults(handler=_run_command)


def _run_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Print the settings of a section, or those that a word occurs in.

    Raises:
        ValueError: no setting has the word; or an override was given, which would have no effect.
    """
    if overrides:
        raise ValueError(
            f"settings takes no override, got {overrides[0]}: give a section or a word."
        )
    chosen = _chosen(list(all_settings()), arguments.topic)
    recipes, lines = _values_in_recipes(), []
    for (section, title), settings in itertools.groupby(chosen, attrgetter("section", "title")):
        lines += [_wrapped(f"{section or 'run'}: {title}"), ""]
        for setting in settings:
            lines += setting.lines(recipes.get(setting.key, ()))
    print("\n".join(lines[:-1]))
    return 0


def all_settings() -> Iterator[_Setting]:
    """Yield every setting in the order of `prism_lite.config`, nested sections last."""
    from prism_lite.config import RunConfig
    from prism_lite.recipe import settings_adapter, to_dict

    schema = settings_adapter().json_schema()
    waiting: list[tuple[str, dict[str, Any], dict[str, Any]]] = [("", schema, to_dict(RunConfig()))]
    while waiting:
        key, section, defaults = waiting.pop(0)
        nested = []
        for name, field in section["properties"].items():
            inner = f"{key}.{name}".strip(".")
            if "$ref" in field:
                nested.append(
                    (inner, schema["$defs"][field["$ref"].rpartition("/")[2]], defaults[name])
                )
            else:
                text = " ".join(field.get("description", "").split())
                yield _Setting(
                    key,
                    section["description"],
                    inner,
                    text,
                    _allowed(field),
                    _plain(defaults[name]),
                )
        waiting = nested + waiting


def _allowed(field: Mapping[str, Any]) -> str:
    """Describe the values that a field's JSON schema allows."""
    if "anyOf" in field:
        return " or ".join(_allowed(option) for option in field["anyOf"])
    if "enum" in field:
        return " | ".join(field["enum"])
    if field["type"] == "array":
        return f"list of {_allowed(field['items'])}"
    if field["type"] == "object":
        return f"mapping of names to {_allowed(field['additionalProperties'])}s"
    bounds = {
        "from": field.get("minimum"),
        "above": field.get("exclusiveMinimum"),
        "to": field.get("maximum"),
        "below": field.get("exclusiveMaximum"),
    }
    limits = [f" {word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    return _TYPES[field["type"]] + "".join(limits)


def _chosen(settings: list[_Setting], topic: str | None) -> list[_Setting]:
    if topic is None:
        return settings
    within = [s for s in settings if s.key == topic or s.key.startswith(f"{topic}.")]
    if within:
        return within
    word = topic.lower()
    matches = [s for s in settings if word in f"{s.key} {s.values} {s.text}".lower()]
    if not matches:
        from prism_lite.setting_names import near_settings

        near = near_settings(topic)
        hint = f"near it: {', '.join(near)}." if near else "prism-lite settings lists all of them."
        raise ValueError(f"no setting has {topic!r} in its name or meaning; {hint}")
    return matches


def _values_in_recipes() -> dict[str, list[str]]:
    """Return, for each setting that recipes or presets set, a line per value with their names."""
    from prism_lite.config import RlvrPreset
    from prism_lite.recipe import recipe_names, recipe_settings

    names: dict[str, dict[str, list[str]]] = {}
    for name in [*recipe_names(), *(f"rlvr.preset={preset}" for preset in get_args(RlvrPreset))]:
        for key, value in recipe_settings(name).items():
            names.setdefault(key, {}).setdefault(_plain(value), []).append(name)
    return {
        key: [f"set to {value} by {', '.join(users)}" for value, users in by_value.items()]
        for key, by_value in names.items()
    }


def _plain(value: Any) -> str:
    """Return a value as it is given on the command line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str, first: str = "", rest: str = "    ") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
