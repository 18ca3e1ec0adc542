"""The part of Go's templates that docker's users type: fields, json, index, len, range, if, join, a few more.

`{{.Name}}`, `{{.State.ExitCode}}`, `{{json .}}`, `{{index .Labels "x"}}`, `{{range .Ports}}…{{end}}`,
`{{if .Tty}}…{{else}}…{{end}}`, `{{.Name | upper}}`. Field names match without regard to case and underscores,
so that `.ExitCode` finds `exit_code`. Out of scope: variables, parentheses, comparisons.
"""

from __future__ import annotations

import json
import re

from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_TAG = re.compile(r"\{\{(-?\s*.*?\s*-?)\}\}", re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|[^\s|]+|\|)')
_ESCAPES = {r"\t": "\t", r"\n": "\n"}
_MAX_DEPTH = 50


class Template:
    """A parsed template: text, actions and blocks."""

    def __init__(self, nodes: list[_Node]) -> None:
        self._nodes = nodes

    def render(self, value: Any) -> str:
        """Raises `Invalid` for a field that isn't there."""
        return "".join(node(value) for node in self._nodes)

    def fields(self) -> list[str]:
        """The last word of each action's field, for a table's heads."""
        return [node.field for node in self._nodes if isinstance(node, _Action) and node.field]


def parse(text: str) -> Template:
    """Raises `Invalid`."""
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    tokens = _tokens(text)
    nodes, end = _parse(tokens, 0)
    if end:
        raise Invalid(f"template: {{{{{end}}}}} without a beginning")
    return Template(nodes)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """`("text" | "tag", content)`; `{{-` and `-}}` eat the white space beside them."""
    position, eat = 0, False
    for match in _TAG.finditer(text):
        plain = text[position : match.start()]
        plain = plain.lstrip() if eat else plain
        inner = match[1]
        yield "text", plain.rstrip() if inner.startswith("-") else plain
        eat = inner.endswith("-")
        yield "tag", inner.strip("-").strip()
        position = match.end()
    rest = text[position:]
    if "{{" in rest:
        raise Invalid("template: {{ is never closed")
    yield "text", rest.lstrip() if eat else rest


def _parse(tokens: Iterator[tuple[str, str]], depth: int) -> tuple[list[_Node], str]:
    """Nodes up to `end` or `else` (which is given back) or the end of the text."""
    if depth > _MAX_DEPTH:
        raise Invalid("template: nested too deeply")
    nodes: list[_Node] = []
    for kind, content in tokens:
        if kind == "text":
            nodes.append(_Text(content))
            continue
        word, _, rest = content.partition(" ")
        if word in ("end", "else"):
            return nodes, word
        nodes.append(_block(word, rest, tokens, depth) if word in ("range", "if") else _Action(content))
    return nodes, ""


def _block(word: str, rest: str, tokens: Iterator[tuple[str, str]], depth: int) -> _Node:
    body, end = _parse(tokens, depth + 1)
    other: list[_Node] = []
    if end == "else":
        other, end = _parse(tokens, depth + 1)
    if end != "end":
        raise Invalid(f"template: {{{{{word}}}}} has no {{{{end}}}}")
    subject = _Action(rest)
    return _Range(subject, body, other) if word == "range" else _If(subject, body, other)


class _Text:
    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, _: Any) -> str:
        return self._text


class _Range:
    def __init__(self, subject: _Action, body: list[_Node], other: list[_Node]) -> None:
        self._subject, self._body, self._other = subject, Template(body), Template(other)

    def __call__(self, value: Any) -> str:
        found = self._subject.value(value)
        items = list(found.values()) if isinstance(found, dict) else list(found or ())
        if not items:
            return self._other.render(value)
        return "".join(self._body.render(item) for item in items)


class _If:
    def __init__(self, subject: _Action, body: list[_Node], other: list[_Node]) -> None:
        self._subject, self._body, self._other = subject, Template(body), Template(other)

    def __call__(self, value: Any) -> str:
        return (self._body if self._subject.value(value) else self._other).render(value)


class _Action:
    """`.Field`, `function ARGUMENT…`, or a pipeline of them."""

    def __init__(self, content: str) -> None:
        self._stages: list[list[str]] = [[]]
        for word in _WORD.findall(content):
            if word == "|":
                self._stages.append([])
            else:
                self._stages[-1].append(word)
        if not all(self._stages):
            raise Invalid(f"template: {{{{{content}}}}} says nothing")
        names = [word for stage in self._stages for word in stage if word.startswith(".") and len(word) > 1]
        self.field = names[-1].rpartition(".")[2] if names else ""

    def __call__(self, value: Any) -> str:
        return text_of(self.value(value))

    def value(self, value: Any) -> Any:
        piped: list[Any] = []
        for stage in self._stages:
            piped = [_evaluate(stage, value, piped)]
        return piped[0]


def _evaluate(stage: list[str], value: Any, piped: list[Any]) -> Any:
    word, *rest = stage
    if word in _FUNCTIONS:
        arguments = [_operand(item, value) for item in rest] + piped
        try:
            return _FUNCTIONS[word](*arguments)
        except (TypeError, ValueError) as error:
            raise Invalid(f"template: {word} can't take these arguments") from error
    if rest or piped:
        known = ", ".join(sorted(_FUNCTIONS))
        raise Invalid(f"template: unknown function {word!r}", hint=f"known: {known}")
    return _operand(word, value)


def _operand(word: str, value: Any) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.startswith("`"):
        return word.strip("`")
    if word.lstrip("-").isdigit():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    if not word.startswith("."):
        raise Invalid(f"template: {word!r} is unknown", hint="fields begin with a dot: {{.Name}}")
    for name in filter(None, word.split(".")):
        value = field(value, name)
    return value


def field(value: Any, name: str) -> Any:
    """A dict's entry by name, whatever its case and underscores. Raises `Invalid`."""
    if not isinstance(value, dict):
        raise Invalid(f"template: .{name}: the value has no fields")
    if name in value:
        return value[name]
    wanted = _plain(name)
    for key, item in value.items():
        if _plain(key) == wanted:
            return item
    raise Invalid(f"template: no field .{name}", hint="fields: " + ", ".join(str(key) for key in value))


def _plain(name: str) -> str:
    return str(name).replace("_", "").lower()


def text_of(value: Any) -> str:
    """As Go prints: true, <no value>, map[…], […]."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{text_of(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(text_of(item) for item in value) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        known = key in value if isinstance(value, dict) else -1 < key < len(value)
        value = value[key] if known else ""
    return value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": json.dumps,
    "index": _index,
    "len": len,
    "upper": lambda value: text_of(value).upper(),
    "lower": lambda value: text_of(value).lower(),
    "join": lambda value, separator: separator.join(text_of(item) for item in value),
    "split": lambda value, separator: value.split(separator),
    "println": lambda *values: " ".join(text_of(value) for value in values) + "\n",
    "print": lambda *values: "".join(text_of(value) for value in values),
    "not": lambda value: not value,
}

if TYPE_CHECKING:
    _Node = Callable[[Any], str]
