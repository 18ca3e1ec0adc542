"""Lists for people: tables, templates, JSON, bare ids. `--format json|table|TEMPLATE`, `-q`, `--no-trunc`.

Out of scope: the template language (`template`).
"""

from __future__ import annotations

from knarr.cli.context import printable, say, say_safely
from knarr.cli.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Column = tuple[str, Callable[[Mapping[str, Any]], str]]

FORMAT = Option("--format", "table, json, or a template such as '{{.Name}} {{.Status}}'", value="FORMAT")
QUIET = Option("-q --quiet", "only ids")
NO_TRUNC = Option("--no-trunc", "ids and commands in full")
FILTER = Option("-f --filter", "only those that match", value="KEY=VALUE", many=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart; control characters neutralised."""
    cells = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(heads))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def show(rows: Sequence[Mapping[str, str]], columns: Sequence[str], style: str | None) -> None:
    """Rows of text by field name; `columns` are the default table's fields."""
    if style == "json":
        import json

        for row in rows:
            say(json.dumps(row))
    elif style in (None, "table"):
        say(
            table([head(column) for column in columns], [[row[column] for column in columns] for row in rows])
        )
    else:
        _templated(rows, str(style))


def _templated(rows: Sequence[Mapping[str, str]], style: str) -> None:
    from knarr.cli import template

    with_heads = style.startswith("table ")
    compiled = template.parse(style.removeprefix("table "))
    lines = [compiled.render(row) for row in rows]
    if not with_heads:
        for line in lines:
            say_safely(line)
        return
    heads = [head(name) for name in compiled.fields()]
    split = [line.split("\t") for line in lines]
    if any(len(row) != len(heads) for row in split):
        heads = ["\t".join(heads)]
        split = [["\t".join(row)] for row in split]
    say(table(heads, split))


_SPELLED = {"ID": "ID", "ImageID": "IMAGE ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT"}
_SPELLED |= {"CreatedSince": "CREATED", "ExitCode": "EXIT CODE", "Names": "NAME"}
_SPELLED |= {"CPUPerc": "CPU %", "MemUsage": "MEM USAGE", "MemPerc": "MEM %", "NetIO": "NET I/O"}
_SPELLED |= {"BlockIO": "BLOCK I/O"}


def head(field: str) -> str:
    return _SPELLED.get(field, field.upper())


def document(value: Any, style: str | None) -> None:
    """One `inspect`-like answer: indented JSON, or a template over it."""
    import json

    if style in (None, "json"):
        say(json.dumps(value, indent=4 if style is None else None, ensure_ascii=True))
        return
    from knarr.cli import template

    compiled = template.parse(str(style))
    for item in value if isinstance(value, list) else [value]:
        say_safely(compiled.render(item))


def short(identity: str, *, full: bool) -> str:
    return identity if full else identity.removeprefix("sha256:")[:12]


def cut(text: str, width: int, *, full: bool) -> str:
    return text if full or len(text) <= width else text[: width - 1] + "…"
