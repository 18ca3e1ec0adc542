"""Help texts out of the option tables."""

from __future__ import annotations

from knarr.cli import registry
from knarr.cli.main import GLOBAL_OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from knarr.cli.options import Command, Option


def overview() -> str:
    """`knarr help`."""
    verbs = [(verb, registry.load(target).summary) for verb, target in registry.VERBS.items()]
    groups = [(group, summary) for group, (summary, _) in registry.GROUPS.items()]
    return (
        "usage: knarr [--root DIR] [--run DIR] COMMAND [OPTIONS] …\n\n"
        "One image, one command, a wall chosen per workload: --isolation container | microvm\n\n"
        f"commands:\n{_columns(verbs)}\n"
        f"groups:\n{_columns(groups)}\n"
        f"global options:\n{option_lines(GLOBAL_OPTIONS)}\n"
        "knarr COMMAND --help tells more of each.\n"
    )


def page(name: str) -> str:
    """The help of one verb (`run`, `image ls`) or of a group."""
    if name in registry.GROUPS:
        summary, verbs = registry.GROUPS[name]
        rows = [(verb, registry.load(target).summary) for verb, target in verbs.items()]
        return f"usage: knarr {name} COMMAND [OPTIONS] …\n\n{summary}\n\ncommands:\n{_columns(rows)}"
    group, _, verb = name.partition(" ")
    target = registry.GROUPS[group][1][verb] if verb else registry.VERBS[group]
    return command_page(name, registry.load(target))


def command_page(name: str, command: Command) -> str:
    usage = " ".join(filter(None, (name, "[OPTIONS]" if command.options else "", command.operands)))
    text = f"usage: knarr {usage}\n\n{command.summary}\n"
    if command.notes:
        text += f"\n{command.notes}\n"
    if command.options:
        text += f"\noptions:\n{option_lines(command.options)}"
    return text


def option_lines(options: Iterable[Option]) -> str:
    return _columns([(option_usage(option), option_help(option)) for option in options])


def option_usage(option: Option) -> str:
    names = ", ".join(option.names)
    if option.optional is not None:
        return f"{names}[={option.value}]"
    return f"{names} {option.value}" if option.takes_value else names


def option_help(option: Option) -> str:
    text = option.help
    if option.choices:
        text += ": " + ", ".join(option.choices)
    return text + " (may be repeated)" if option.many else text


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = min(max((len(left) for left, _ in rows), default=0), 30)
    lines = []
    for left, right in rows:
        lines.append(
            f"  {left:<{width}}  {right}" if len(left) <= width else f"  {left}\n  {'':<{width}}  {right}"
        )
    return "\n".join(lines) + "\n"
