"""`pause unpause restart rename update top diff`."""

from __future__ import annotations

from knarr.cli import limits, tables
from knarr.cli.context import Context, each, printable, say
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import restart as restart_policy
from knarr.cli.spec import whole
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pause(context: Context, a: Arguments) -> int:
    return each(a.operands, context.client.pause)


def unpause(context: Context, a: Arguments) -> int:
    return each(a.operands, context.client.unpause)


def restart(context: Context, a: Arguments) -> int:
    seconds = None if a.time is None else whole("--time", a.time)
    return each(a.operands, lambda name: context.client.restart(name, timeout=seconds))


def rename(context: Context, a: Arguments) -> int:
    context.client.rename(a.operands[0], a.operands[1])
    return 0


def update(context: Context, a: Arguments) -> int:
    wanted = changes_wanted(a)
    if not wanted:
        raise Invalid("update: nothing to change is named", hint="such as --memory 512m")
    return each(a.operands, lambda name: context.client.update(name, wanted))


def changes_wanted(a: Arguments) -> dict[str, Any]:
    """Only what was said. 0, and -1 for processes, take a limit back."""
    wanted = limits.said(a)
    if "pids" in wanted:
        wanted["pids"] = wanted["pids"] or -1
    if a.restart is not None:
        wanted["restart"] = restart_policy(a.restart)
    return wanted


def top(context: Context, a: Arguments) -> int:
    found = context.client.top(a.operands[0], " ".join(a.operands[1:]))
    say(tables.table(found["titles"], found["processes"]))
    return 0


def diff(context: Context, a: Arguments) -> int:
    for item in context.client.changes(a.operands[0]):
        say(f"{item['kind']} {printable(item['path'])}")
    return 0


RENAME = Command(rename, "give a workload another name", "WORKLOAD NAME", complete="workload")
UPDATE = Command(
    update,
    "change limits of workloads, at once if they run",
    "WORKLOAD [WORKLOAD...]",
    (
        *limits.CHANGEABLE,
        Option("--restart", "no, always, unless-stopped, on-failure[:NUMBER]", value="POLICY"),
    ),
    complete="workload",
    notes="0, an empty list, and -1 for swap and processes take a limit back.",
)
TOP = Command(
    top,
    "list the processes of a workload",
    "WORKLOAD [PS-OPTION...]",
    intermixed=False,
    complete="workload",
    notes="Pids are those inside. Options of ps: -ef, or -o with columns such as pid,user,rss,args.",
)
DIFF = Command(
    diff, "list what a workload added (A), changed (C) or deleted (D)", "WORKLOAD", complete="workload"
)
PAUSE = Command(
    pause, "freeze all processes of workloads where they are", "WORKLOAD [WORKLOAD...]", complete="workload"
)
UNPAUSE = Command(unpause, "let frozen workloads go on", "WORKLOAD [WORKLOAD...]", complete="workload")
RESTART = Command(
    restart,
    "stop workloads if they run, then start them",
    "WORKLOAD [WORKLOAD...]",
    (Option("-t --time --timeout", "seconds before SIGKILL", value="SECONDS", dest="time"),),
    complete="workload",
)
