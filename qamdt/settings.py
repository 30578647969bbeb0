"""Settings: a YAML file becomes frozen dataclasses, and anything unknown or mistyped is refused.

A run that is resumed is held to the settings that it was started with, except those that change no result or that may
change on the way.
"""

import dataclasses
import json
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from qamdt.files import read_json, write_json


Settings = TypeVar("Settings")


def load_settings(cls: type[Settings], path: str | Path, overrides: Collection[str] = ()) -> Settings:
    """Reads a YAML file and applies overrides such as `optim.learning_rate=2.0e-4`.

    Args:
        cls: The dataclass to build.
        path: The file; see `find_settings`.
        overrides: `key=value` pairs with dots between the levels; the value is read as YAML.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {values!r}.")
    try:
        for pair in overrides:
            _set(values, *_parse_override(pair))
        return build(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_settings(path: str | Path, presets: Path, *, folder: str) -> Path:
    """Returns the file of a path or of a preset's name.

    Args:
        path: What the user gave.
        presets: Folder of the presets, wherever this installation keeps it.
        folder: Where the same presets lie in a checkout, such as `configs/qamdt`; paths in it mean the presets too.
    """
    candidates = [Path(path), presets / f"{path}.yaml"]
    if Path(path).parent == Path(folder):
        candidates.append(presets / Path(path).name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted(preset.stem for preset in presets.glob("*.yaml"))
    raise FileNotFoundError(f"there is no config {str(path)!r}; give a YAML file or one of the presets {names}.")


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns `settings` with some of them replaced, each named with dots between the levels."""
    values = dataclasses.asdict(settings)
    for key, value in changes.items():
        _set(values, key, value)
    return build(type(settings), values)


def format_settings(settings: Any) -> str:
    """Returns settings as YAML, from which `load_settings` reads the same settings."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)


def check_resumption(started: Settings, resumed: Settings, *, free: Collection[str], source: str | Path) -> str | None:
    """Refuses to resume a run with other settings.

    Args:
        started: The settings that the run was started with, or last resumed with.
        resumed: The settings that it is to be resumed with.
        free: Settings that may differ, with dots between the levels.
        source: Where `started` was read, for the message.

    Returns:
        A line that says which of the free settings changed; `None` when all are the same.

    Raises:
        ValueError: Another setting differs.
    """
    changes = _find_changes(started, resumed)
    refused = {key: pair for key, pair in changes.items() if key not in free}
    words = _describe(refused or changes)
    if refused:
        raise ValueError(
            f"a run cannot be resumed with other settings: {words}; give another output folder, or the settings of "
            f"{source}."
        )
    return f"Resuming with other settings: {words}." if changes else None


def hold_folder_to(path: Path, settings: Mapping[str, Any], *, remedy: str) -> None:
    """Notes in a JSON file what the content of its folder is made with, and refuses to go on there with anything else.

    Args:
        path: The note, in the folder; written when there is none.
        settings: All that decides about the content, as JSON can hold it.
        remedy: What else to do, for the message.

    Raises:
        ValueError: The note says something else.
    """
    if not path.is_file():
        write_json(path, dict(settings))
        return
    noted = read_json(path)
    if not isinstance(noted, dict):
        raise ValueError(f"{str(path)!r} must hold settings, and it holds something else; move it away, or {remedy}.")
    found, asked = _flatten(noted), _flatten(json.loads(json.dumps(settings)))
    changes = {key: (found.get(key), asked.get(key)) for key in found | asked if found.get(key) != asked.get(key)}
    if changes:
        raise ValueError(f"{str(path.parent)!r} was made with other settings: {_describe(changes)}; {remedy}.")


def _find_changes(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, named with dots between the levels, each with both values."""
    old, new = (_flatten(dataclasses.asdict(settings)) for settings in (before, after))
    pairs = {key: (old.get(key), new.get(key)) for key in old | new}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _describe(changes: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"`{key}` was {_show(old)} and is now {_show(new)}" for key, (old, new) in changes.items())


def _show(value: Any) -> str:
    return "null" if value is None else repr(value)


def build(cls: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """Builds dataclass `cls` from a mapping read from YAML, refusing unknown and missing keys and wrong types."""
    if not isinstance(values, dict):
        raise ValueError(f"`{where.rstrip('.')}` must be a mapping, got {values!r}.")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"unknown key `{where}{key}`; expected one of {sorted(hints)}.")
    for spec in dataclasses.fields(cls):
        if spec.default is spec.default_factory is dataclasses.MISSING and spec.name not in values:
            raise ValueError(f"the key `{where}{spec.name}` is missing.")
    return cls(**{key: _check(value, hints[key], f"{where}{key}") for key, value in values.items()})


def _check(value: Any, kind: Any, name: str) -> Any:
    """Returns `value` as a setting of type `kind` holds it."""
    if dataclasses.is_dataclass(kind):
        return build(kind, value, f"{name}.")
    if get_origin(kind) is Literal:
        return _check_choice(value, get_args(kind), name)
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [option for option in get_args(kind) if option is not types.NoneType]
        if value is None and len(kinds) < len(get_args(kind)):
            return None
        fitting = [option for option in kinds if type(value) is (get_origin(option) or option)]
        return _check(value, (fitting or kinds)[0], name)
    kind, items = get_origin(kind) or kind, get_args(kind)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind and not (kind is tuple and type(value) is list):
        hint = " (YAML reads 1e-4 as text; write 1.0e-4)" if kind is float and isinstance(value, str) else ""
        wanted = "list" if kind is tuple else kind.__name__
        raise ValueError(f"`{name}` must be of type {wanted}, got {value!r}{hint}.")
    if kind in (list, tuple):
        return kind(_check(item, items[0], f"{name}[{index}]") for index, item in enumerate(value))
    return value


def _check_choice(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    # YAML reads a bare `no` as false, which is how `mixed_precision: no` arrives.
    value = "no" if value is False and "no" in choices else value
    if value not in choices or isinstance(value, bool):
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")
    return value


def _parse_override(pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"an override must read `key=value`, got {pair!r}.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of the override {pair!r} is no valid YAML: {error}") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"in the override of `{key}`, `{parent}` is no group of settings.")
    values[last] = value
