"""The command line's entry: global options, finding the verb, and turning errors into lines and exit codes.

Out of scope: the verbs (`commands`), their table (`registry`).
"""

from __future__ import annotations

import os
import sys

from knarr.cli import context, registry
from knarr.cli.options import HELP, Command, Option, check_operands, parse, suggest
from knarr.model.errors import Invalid, KnarrError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

GLOBAL_OPTIONS = (
    Option("--root", "folder of images and workloads (KNARR_ROOT)", value="DIR", complete="folder"),
    Option("--run", "folder of sockets and run-time state (KNARR_RUN)", value="DIR", complete="folder"),
    Option("-v --version", "print the version"),
    HELP,
)

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit code."""
    _tolerate_odd_names(sys.stdout, sys.stderr)
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _mute()
        return BROKEN_PIPE
    except OSError as error:
        return _report(KnarrError(_os_text(error)), exact=False)


def _tolerate_odd_names(*streams: TextIO) -> None:
    """File names that are not UTF-8 must not end a command in a traceback."""
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]


def _mute() -> None:
    """The reader of our output has gone; the interpreter's last flush must not complain about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _os_text(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _report(error: KnarrError, *, exact: bool) -> int:
    if os.environ.get("KNARR_DEBUG"):
        import traceback

        traceback.print_exc()
    context.complain(error)
    return error.exit_code if exact else 1


def dispatch(words: list[str]) -> int:
    """Find the verb and run it."""
    try:
        found = parse(GLOBAL_OPTIONS, words, intermixed=False)
        if found.version:
            from knarr import __version__

            context.say(f"knarr {__version__}")
            return 0
        if not found.operands:
            return _help((), 0 if found.help else 2)
        name, command, rest = find(found.operands)
    except KnarrError as error:
        return _report(error, exact=True)
    if command is None:
        return _help((name,), 0 if found.help or not rest or rest[0] in HELP.names else 2)
    if found.help:
        return _help((name,), 0)
    return _run(context.Context(found.root, found.run), name, command, rest)


def find(words: Sequence[str]) -> tuple[str, Command | None, list[str]]:
    """`(full name, command, remaining words)`; no command for a group alone. Raises `Invalid`."""
    verb, *rest = words
    if verb in registry.GROUPS:
        verbs = registry.GROUPS[verb][1]
        if not rest or rest[0] in HELP.names:
            return verb, None, rest
        below = registry.ALIASES.get(rest[0], rest[0])
        if below not in verbs:
            raise Invalid(f"unknown command {verb} {rest[0]!r}", hint=suggest(rest[0], verbs))
        return f"{verb} {below}", registry.load(verbs[below]), rest[1:]
    if verb not in registry.VERBS:
        raise Invalid(f"unknown command {verb!r}", hint=suggest(verb, [*registry.VERBS, *registry.GROUPS]))
    return verb, registry.load(registry.VERBS[verb]), rest


def _run(where: context.Context, name: str, command: Command, words: list[str]) -> int:
    try:
        arguments = parse((*command.options, HELP), words, intermixed=command.intermixed)
        if arguments.help:
            return _help((name,), 0)
        check_operands(name, command, arguments.operands)
        return command.handler(where, arguments)
    except KnarrError as error:
        return _report(error, exact=command.exact_codes)


def _help(names: Sequence[str], code: int) -> int:
    from knarr.cli import help as pages

    text = pages.page(names[0]) if names else pages.overview()
    (sys.stdout if code == 0 else sys.stderr).write(text)
    return code
