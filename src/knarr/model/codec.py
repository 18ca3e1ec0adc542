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
from typing import TYPE_CHECKING, Any, TypeVar

from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    _Decoder = Callable[[Any, "_Where"], Any]

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


def changed(value: Any) -> dict[str, Any]:
    """The same of a dataclass without what its defaults say; `from_json` gives the same value."""
    found = {}
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.default is dataclasses.MISSING or given != field.default:
            if field.default_factory is not dataclasses.MISSING and given == field.default_factory():
                continue
            found[field.name] = changed(given) if dataclasses.is_dataclass(given) else to_json(given)
    return found


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build a `cls` from JSON values. Raises `Invalid` naming the offending field by its path."""
    hint: Any = cls
    return typing.cast("T", _decoder(hint)(data, _Where(where or cls.__name__)))


@functools.cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


class _Where:
    """A place in the data: put into words only when something is wrong there."""

    __slots__ = ("_name", "_parent")

    def __init__(self, name: str, parent: _Where | None = None) -> None:
        self._name = name
        self._parent = parent

    def __str__(self) -> str:
        return self._name if self._parent is None else f"{self._parent}{self._name}"


@functools.cache
def _decoder(hint: Any) -> _Decoder:
    """Made once for each hint."""
    if hint is Any:
        return lambda data, _: data
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _union(hint)
    if origin is tuple:
        return _tuple(_decoder(typing.get_args(hint)[0]))
    if origin is dict:
        return _dict(_decoder(typing.get_args(hint)[1]))
    if dataclasses.is_dataclass(hint):
        return functools.partial(_decode_dataclass, hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return functools.partial(_decode_enum, hint)
    return functools.partial(_decode_scalar, hint)


def _union(hint: Any) -> _Decoder:
    arguments = typing.get_args(hint)
    optional = type(None) in arguments
    inner = _decoder(next(arg for arg in arguments if arg is not type(None)))

    def decode(data: Any, where: _Where) -> Any:
        if data is not None:
            return inner(data, where)
        if optional:
            return None
        raise Invalid(f"{where}: a value is required")

    return decode


def _tuple(inner: _Decoder) -> _Decoder:
    def decode(data: Any, where: _Where) -> tuple[Any, ...]:
        if not isinstance(data, (list, tuple)):
            raise Invalid(f"{where}: expected a list, got {type(data).__name__}")
        return tuple(inner(item, _Where(f"[{index}]", where)) for index, item in enumerate(data))

    return decode


def _dict(inner: _Decoder) -> _Decoder:
    def decode(data: Any, where: _Where) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise Invalid(f"{where}: expected an object, got {type(data).__name__}")
        return {str(key): inner(item, _Where(f".{key}", where)) for key, item in data.items()}

    return decode


@functools.cache
def _fields(cls: Any) -> dict[str, _Decoder]:
    return {name: _decoder(hint) for name, hint in typing.get_type_hints(cls).items()}


def _decode_dataclass(cls: Any, data: Any, where: _Where) -> Any:
    if not isinstance(data, dict):
        raise Invalid(f"{where}: expected an object, got {type(data).__name__}")
    fields = _fields(cls)
    unknown = sorted(data.keys() - fields.keys())
    if unknown:
        known = ", ".join(sorted(fields))
        raise Invalid(f"{where}: unknown field {unknown[0]!r}", hint=f"known fields: {known}")
    values = {key: fields[key](item, _Where(f".{key}", where)) for key, item in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise Invalid(f"{where}: {error}") from error


def _decode_enum(hint: Any, data: Any, where: _Where) -> Any:
    try:
        return hint(data)
    except ValueError:
        known = ", ".join(str(item.value) for item in hint)
        raise Invalid(f"{where}: unknown value {data!r}", hint=f"one of: {known}") from None


def _decode_scalar(hint: Any, data: Any, where: _Where) -> Any:
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(data, bool) and hint is not bool:
        raise Invalid(f"{where}: expected {hint.__name__}, got bool")
    if not isinstance(data, hint):
        raise Invalid(f"{where}: expected {hint.__name__}, got {type(data).__name__}")
    return data
