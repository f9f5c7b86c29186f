"""Configs: a Python file, the defaults of what it names, and overrides from the command line."""

import json
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.schema import Options, Section

Schema = Mapping[str, Section]
OVERRIDE = "--config."


def variant_words(variant: str | None, known: Sequence[str] = ("smoke",)) -> tuple[str, ...]:
    """Splits the part of `--config FILE:VARIANT` behind the colon.

    Args:
      variant: comma-separated words, in any order; None or "" for none.
      known: the words that the config file understands.

    Returns:
      The words.

    Raises:
      UserError: a word the file does not understand.
    """
    words = tuple(word for word in (variant or "").split(",") if word)
    for word in words:
        if word not in known:
            raise UserError(f"config variant '{word}' is not known{did_you_mean(word, known)}")
    return words


def one_of(words: Sequence[str], choices: Iterable[str], default: str) -> str:
    """The word of a variant that picks a row of a config file's table.

    Args:
      words: what `variant_words` returned.
      choices: the words that exclude each other, such as the keys of the table.
      default: what is picked where none of them is named.

    Returns:
      The one word of `choices` among `words`, or `default`.

    Raises:
      UserError: several of them are named.
    """
    choices = tuple(choices)
    named = sorted({word for word in words if word in choices})
    if len(named) > 1:
        listed = " and ".join(f"'{word}'" for word in named)
        raise UserError(f"config variant names {listed}, which exclude each other: name one of them")
    return named[0] if named else default


def with_changes(config: Mapping[str, Options], changes: Mapping[str, Options]) -> dict[str, Options]:
    """A config with some keys set otherwise.

    Args:
      config: section name to its keys and values.
      changes: the same of the keys to set; sections and keys that `config` lacks are added.

    Returns:
      New sections; the arguments stay as they are.
    """
    places = dict.fromkeys((*config, *changes))
    return {place: {**config.get(place, {}), **changes.get(place, {})} for place in places}


def load_config(file: str, overrides: Sequence[str], schema: Schema) -> config_dict.ConfigDict:
    """Reads a config file, adds defaults, applies overrides and checks the result.

    Args:
      file: path of a Python file with `get_config(variant)`, and after a colon the variant.
      overrides: see `override`.
      schema: the sections and what they may hold.

    Returns:
      The complete, locked config.

    Raises:
      UserError: the file is missing or has no `get_config`; unknown section, key, name or variant; wrong type.
    """
    return override(read_config(file), overrides, schema)


def read_config(file: str) -> dict[str, Any]:
    """Runs a config file: section name to what it sets there, not yet checked; see `load_config`."""
    path = file.partition(":")[0]
    if not os.path.isfile(path):
        raise UserError(f"--config {file}: there is no file {path}; configs are Python files such as configs/digits.py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[path])
    try:
        values([path, f"--config={file}"])
        config = values.config
    except (SyntaxError, AttributeError) as error:
        raise UserError(f"--config {file}: {type(error).__name__}: {error}") from None
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"--config {file}: get_config returned {type(config).__name__}, not a ConfigDict")
    return config.to_dict()


def override(config: Mapping[str, Any], overrides: Sequence[str], schema: Schema) -> config_dict.ConfigDict:
    """Applies overrides from the command line to a config and checks the result.

    Args:
      config: section name to its keys and values.
      overrides: arguments `--config.section.key=value`, or `--config.section.key`, `value`; the last of a key wins. A
        section whose `name` is overridden keeps the keys that the new one has too and that were not at their defaults.
      schema: the sections and what they may hold.

    Returns:
      The complete, locked config.

    Raises:
      UserError: unknown section, key or name; wrong type.
    """
    joined = {_path(argument): argument for argument in _joined(overrides)}
    defaults = complete(_apply_names(dict(config), list(joined.values()), schema), schema)
    for argument in joined.values():
        _check_override(argument, defaults, schema)
    to_none = [path for path, argument in joined.items() if _is_none(argument, defaults, schema)]
    words = ["overrides", *(argument for path, argument in joined.items() if path not in to_none)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", _with_placeholders(defaults, schema), flag_values=values, sys_argv=words)
    try:
        values(words)
    except flags.Error as error:
        raise UserError(f"override: {' '.join(str(error).split())}") from None
    result = values.config.to_dict()
    for place, key in to_none:
        result[place][key] = None
    return complete(result, schema)


def complete(config: Mapping[str, Any], schema: Schema) -> config_dict.ConfigDict:
    """Checks every section and fills in the defaults.

    Args:
      config: section name to its keys and values; sections without required keys may be left out.
      schema: the sections and what they may hold.

    Returns:
      A locked `ConfigDict` with every section of the schema and every key of each.

    Raises:
      UserError: unknown section, key or name; missing key; wrong type.
    """
    for name in config:
        if name not in schema:
            raise UserError(f"config has no section '{name}'{did_you_mean(name, schema)}")
    filled = {name: section.complete(name, config.get(name) or {}) for name, section in schema.items()}
    return config_dict.ConfigDict(filled).lock()


def to_json(config: config_dict.ConfigDict) -> str:
    """The config as indented JSON; tuples become lists, which `from_json` turns back."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, schema: Schema) -> config_dict.ConfigDict:
    """Reads what `to_json` wrote, adding the defaults of keys that have appeared since."""
    return complete(json.loads(text), schema)


def differences(old: config_dict.ConfigDict, new: config_dict.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The keys ("section.key") whose values differ between two complete configs, with both values."""
    keys = {(section, key) for config in (old, new) for section in config for key in config[section]}
    pairs = {f"{s}.{k}": (old.get(s, {}).get(k), new.get(s, {}).get(k)) for s, k in sorted(keys)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _joined(overrides: Sequence[str]) -> list[str]:
    """Writes `--config.a.b`, `value` as `--config.a.b=value`."""
    joined: list[str] = []
    for argument in overrides:
        if argument.startswith(OVERRIDE):
            joined.append(argument)
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            raise UserError(f"'{argument}' is not an override: write --config.section.key=value")
    return joined


def _renamed(values: Mapping[str, Any], place: str, name: str, section: Section) -> dict[str, Any]:
    """The section under another name, with the keys that the new constructor has too.

    Keys that only repeat a default of the old constructor are left to the defaults of the new one.
    """
    new = section.options(section.constructor(place, {"name": name}))
    old = section.options(section.constructor(place, values)) if values else {}
    kept = {
        key: value for key, value in values.items() if key in new and not (key in old and value == old[key].default)
    }
    return {**kept, "name": name}


def _apply_names(config: dict[str, Any], overrides: Sequence[str], schema: Schema) -> dict[str, Any]:
    """Renames sections first, since the name decides which other keys there are to override."""
    for argument in overrides:
        place, key = _path(argument)
        value = argument.partition("=")[2]
        if key == "name" and place in schema and isinstance(schema[place].constructors, Mapping):
            config = {**config, place: _renamed(config.get(place) or {}, place, value, schema[place])}
    return config


def _path(argument: str) -> tuple[str, str]:
    """Section and key of an override."""
    place, _, key = argument[len(OVERRIDE) :].partition("=")[0].partition(".")
    return place, key


def _check_override(argument: str, config: config_dict.ConfigDict, schema: Schema) -> None:
    place, key = _path(argument)
    if place not in schema:
        raise UserError(f"{argument}: config has no section '{place}'{did_you_mean(place, schema)}")
    if key not in config[place]:
        name = f" '{config[place].name}'" if isinstance(schema[place].constructors, Mapping) else ""
        raise UserError(f"{argument}: {place}{name} has no key '{key}'{did_you_mean(key, config[place])}")
    if "=" not in argument:
        raise UserError(f"{argument} has no value: write {argument}=VALUE")


def _is_none(argument: str, config: config_dict.ConfigDict, schema: Schema) -> bool:
    """Whether an override sets an optional key to None, which config_flags would read as a word."""
    place, key = _path(argument)
    section = schema[place]
    option = section.options(section.constructor(place, config[place])).get(key)
    return argument.endswith("=None") and option is not None and type(None) in _choices(option.annotation)


def _with_placeholders(config: config_dict.ConfigDict, schema: Schema) -> config_dict.ConfigDict:
    """Gives keys that are None a type, so that an override can be parsed, and tells floats from integers."""
    typed = config_dict.ConfigDict(config.to_dict())
    for place, section in schema.items():
        options = section.options(section.constructor(place, config[place]))
        for key, option in options.items():
            kinds = [kind for kind in _choices(option.annotation) if kind is not type(None)]
            if config[place][key] is None and len(kinds) == 1:
                kind = typing.get_origin(kinds[0]) or kinds[0]
                if kind is typing.Literal:
                    kind = type(typing.get_args(kinds[0])[0])
                if kind in (int, float, str, bool, tuple):
                    typed[place][key] = config_dict.placeholder(kind)
    return typed


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
