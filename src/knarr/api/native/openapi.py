"""The OpenAPI document, made from the routes and the model's types: it can't tell anything else than
they do.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from typing import TYPE_CHECKING, Any

from knarr.api.http import STATUS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.api.native.routes import Param, Route

_KINDS = {"str": "string", "bool": "boolean", "int": "integer", "float": "number", "time": "string"}
_SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number"}
_PLACE = re.compile(r"\{(\w+)(?::[^}]*)?\}")


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for route in routes:
        path = _PLACE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Knarr", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


_ERROR = {
    "type": "object",
    "required": ["kind", "message", "hint", "exit_code"],
    "properties": {
        "kind": {"type": "string", "enum": sorted(STATUS)},
        "message": {"type": "string"},
        "hint": {"type": ["string", "null"]},
        "exit_code": {"type": "integer"},
    },
}


def _operation(route: Route, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACE.findall(path)
    ]
    operation: dict[str, Any] = {
        "summary": route.text,
        "operationId": getattr(route.act, "__name__", route.path),
        "parameters": [*places, *(_parameter(param) for param in route.query)],
        "responses": {str(route.status): {"description": "done", "content": {route.gives: {}}}},
    }
    for kind in ("invalid", *route.errors):
        operation["responses"][str(STATUS[kind])] = {
            "description": kind,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    if route.body is not None:
        content: dict[str, Any] = {"application/json": {"schema": _schema(route.body, schemas)}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.takes:
        operation["requestBody"] = {"required": True, "content": {route.takes: {}}}
    return operation


def _parameter(param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = (
        {"type": "array", "items": {"type": "string"}}
        if param.kind == "list"
        else {"type": _KINDS[param.kind]}
    )
    if param.default is not None:
        schema["default"] = param.default
    return {
        "name": param.name,
        "in": "query",
        "required": param.required,
        "description": param.text,
        "schema": schema,
    }


def _schema(hint: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(arg for arg in args if arg is not type(None))
        return {"anyOf": [_schema(inner, schemas), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], schemas)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [item.value for item in hint]}
    if dataclasses.is_dataclass(hint):
        return _reference(hint, schemas)
    return {"type": _SCALARS[hint]} if hint in _SCALARS else {}


def _reference(cls: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    name = cls.__name__.lstrip("_")
    if name not in schemas:
        schemas[name] = {}
        hints = typing.get_type_hints(cls)
        required = [
            item.name
            for item in dataclasses.fields(cls)
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        ]
        schemas[name] = {
            "type": "object",
            "additionalProperties": False,
            "required": required,
            "properties": {key: _schema(hint, schemas) for key, hint in hints.items()},
        }
    return {"$ref": f"#/components/schemas/{name}"}
