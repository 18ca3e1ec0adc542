"""`version`, `system info`, `system check`."""

from __future__ import annotations

import os
import sys

from knarr.cli import tables
from knarr.cli.context import Context, complain, printable, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Failed, KnarrError
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

FORMAT = Option("-f --format", "json, or a template such as '{{.version}}'", value="FORMAT")

_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_CHECKS = (
    "import sys, json; sys.path.insert(0, sys.argv[1]); from knarr.kernel import facts; "
    "print(json.dumps([list(check) for check in facts.checks()]))"
)


def version(context: Context, a: Arguments) -> int:
    from knarr import __version__

    answer: dict[str, Any] = {"client": {"version": __version__}, "daemon": None}
    problem: KnarrError | None = None
    try:
        answer["daemon"] = context.connect(start=False).version()
    except KnarrError as error:
        problem = error
    if a.format:
        tables.document(answer, a.format)
        return 0
    say(f"client: {__version__}")
    if problem is None:
        daemon = answer["daemon"]
        say(
            f"daemon: {daemon.get('version')}, API {daemon.get('api_version')}, kernel {daemon.get('kernel')}"
        )
        return 0
    complain(problem)
    return 1


def info(context: Context, a: Arguments) -> int:
    found = context.client.system_info()
    if a.format:
        tables.document(found, a.format)
        return 0
    checks = found.pop("checks", [])
    # what the planners go by; --format json has it
    found.pop("facts", None)
    images = found["images"]
    found["images"] = f"{images['total']}, {format_bytes(images['distinct'])} on the disk"
    for line in _readable(found):
        say(line)
    bad = [check for check in checks if not check.get("ok")]
    say(f"checks: {len(checks) - len(bad)} of {len(checks)} fine" + (": knarr system check" if bad else ""))
    return 0


def _readable(value: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Nested values as an indented list."""
    lines = []
    for key, item in value.items():
        head = "  " * depth + str(key).replace("_", " ")
        if isinstance(item, dict):
            lines += [f"{head}:", *_readable(item, depth + 1)] if item else [f"{head}: ready"]
        elif isinstance(item, list):
            lines.append(f"{head}: {printable(', '.join(map(str, item)) or 'none')}")
        elif key in ("memory", "bytes", "size") and isinstance(item, int):
            lines.append(f"{head}: {format_bytes(item)}")
        else:
            lines.append(f"{head}: {printable(_plain(item))}")
    return lines


def _plain(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    return "-" if item is None or item == "" else str(item)


def check(context: Context, a: Arguments) -> int:
    """Asks a running daemon, and tries by itself where none runs: it must work before the first start."""
    try:
        checks = context.connect(start=False).system_info()["checks"]
    except KnarrError:
        checks = _own_checks()
    checks = [*checks, *_folders(context)]
    if a.format == "json":
        tables.document(checks, "json")
    else:
        for item in checks:
            say(check_line(item))
    return 0 if all(item["ok"] for item in checks) else 1


def check_line(item: Mapping[str, Any]) -> str:
    mark = "ok     " if item["ok"] else "MISSING"
    line = f"{mark} {item['name']}: {printable(item['detail'])}"
    return (
        line
        if item["ok"] or not item.get("remedy")
        else f"{line}\n        remedy: {printable(item['remedy'])}"
    )


def _own_checks() -> list[dict[str, Any]]:
    """In a process of its own: the command line does not load the kernel package."""
    import json
    import subprocess

    command = [sys.executable, "-IS", "-c", _CHECKS, _SOURCE]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        rows = json.loads(done.stdout)
    except ValueError as error:
        last = done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"]
        raise Failed(f"the checks could not run: {last[-1]}") from error
    return [dict(zip(("name", "ok", "detail", "remedy"), row, strict=True)) for row in rows]


def _folders(context: Context) -> Iterable[dict[str, Any]]:
    for name, path, remedy in (
        ("root folder", context.root, "run as root, or choose another with --root"),
        ("run folder", context.run, "run as root, or choose another with --run"),
    ):
        above = path
        while not os.path.exists(above):
            above = os.path.dirname(above)
        ok = os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)
        detail = path + ("" if ok else f": {above} is not writable")
        yield {"name": name, "ok": ok, "detail": detail, "remedy": remedy}


VERSION = Command(version, "versions of the command line and the daemon", "", (FORMAT,))
INFO = Command(info, "this host and this engine", "", (FORMAT,))
CHECK = Command(
    check,
    "what this host can do, what is missing, and the remedy",
    "",
    (Option("--format", "json", value="FORMAT", choices=("json", "table")),),
    notes="Exits with 1 when something is missing. Works without a daemon.",
)
