"""Frozen dataclasses ↔ JSON values, driven by their type hints; unknown fields are refused.

Standard library only, because the command line loads it. Supported hints: str, int, float, bool, None,
enums, dataclasses, tuple[X, ...], dict[str, X], X | None, Any.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from typing import Any, TypeVar

from knarr.model.errors import Invalid

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Turn a value made of dataclasses, enums, tuples and dicts into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build a `cls` from JSON values. Raises `Invalid` naming the offending field by its path."""
    return typing.cast("T", _decode(cls, data, where or cls.__name__))


@functools.cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, data: Any, where: str) -> Any:
    if hint is Any:
        return data
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(hint, data, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(hint)[0], data, where)
    if origin is dict:
        return _decode_dict(typing.get_args(hint)[1], data, where)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, data, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _decode_enum(hint, data, where)
    return _decode_scalar(hint, data, where)


def _decode_union(hint: Any, data: Any, where: str) -> Any:
    if data is None:
        if type(None) in typing.get_args(hint):
            return None
        raise Invalid(f"{where}: a value is required")
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return _decode(inner[0], data, where)


def _decode_tuple(inner: Any, data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise Invalid(f"{where}: expected a list, got {type(data).__name__}")
    return tuple(_decode(inner, item, f"{where}[{index}]") for index, item in enumerate(data))


def _decode_dict(inner: Any, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Invalid(f"{where}: expected an object, got {type(data).__name__}")
    return {str(key): _decode(inner, item, f"{where}.{key}") for key, item in data.items()}


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise Invalid(f"{where}: expected an object, got {type(data).__name__}")
    hints = _hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        known = ", ".join(sorted(hints))
        raise Invalid(f"{where}: unknown field {unknown[0]!r}", hint=f"known fields: {known}")
    values = {key: _decode(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise Invalid(f"{where}: {error}") from error


def _decode_enum(hint: Any, data: Any, where: str) -> Any:
    try:
        return hint(data)
    except ValueError:
        known = ", ".join(str(item.value) for item in hint)
        raise Invalid(f"{where}: unknown value {data!r}", hint=f"one of: {known}") from None


def _decode_scalar(hint: Any, data: Any, where: str) -> Any:
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(data, bool) and hint is not bool:
        raise Invalid(f"{where}: expected {hint.__name__}, got bool")
    if not isinstance(data, hint):
        raise Invalid(f"{where}: expected {hint.__name__}, got {type(data).__name__}")
    return data
