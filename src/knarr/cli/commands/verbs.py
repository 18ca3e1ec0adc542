"""`pause unpause restart`: a running workload frozen, gone on with, begun anew."""

from __future__ import annotations

from knarr.cli.context import Context, each
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import whole


def pause(context: Context, a: Arguments) -> int:
    return each(a.operands, context.client.pause)


def unpause(context: Context, a: Arguments) -> int:
    return each(a.operands, context.client.unpause)


def restart(context: Context, a: Arguments) -> int:
    seconds = None if a.time is None else whole("--time", a.time)
    return each(a.operands, lambda name: context.client.restart(name, timeout=seconds))


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
