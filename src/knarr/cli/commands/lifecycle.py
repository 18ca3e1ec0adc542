"""`start stop kill rm wait`: one call per named workload, names printed as they are done."""

from __future__ import annotations

from knarr.cli.commands.attach import DETACH_KEYS, SIG_PROXY
from knarr.cli.context import Context, complain, each, say
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import whole
from knarr.model.errors import Invalid, KnarrError, NotFound


def start(context: Context, a: Arguments) -> int:
    if not (a.attach or a.interactive):
        return each(a.operands, context.client.start)
    if len(a.operands) > 1:
        raise Invalid("start -a takes one workload")
    from knarr.cli.commands.attach import join

    proxy = a.sig_proxy != "false"
    return join(
        context, a.operands[0], stdin=a.interactive, proxy=proxy, detach_keys=a.detach_keys, start=True
    )


def stop(context: Context, a: Arguments) -> int:
    seconds = None if a.time is None else whole("--time", a.time)
    return each(a.operands, lambda name: context.client.stop(name, timeout=seconds))


def kill(context: Context, a: Arguments) -> int:
    signal = a.signal or "KILL"
    return each(a.operands, lambda name: context.client.kill(name, signal))


def rm(context: Context, a: Arguments) -> int:
    def remove(name: str) -> None:
        try:
            context.client.remove(name, force=a.force, volumes=a.volumes)
        except NotFound:
            if not a.force:
                raise

    return each(a.operands, remove)


def wait(context: Context, a: Arguments) -> int:
    failed = 0
    for name in a.operands:
        try:
            say(str(context.client.wait(name, a.condition or "not-running")["exit_code"]))
        except KnarrError as error:
            complain(error)
            failed = 1
    return failed


START = Command(
    start,
    "start workloads that are not running",
    "WORKLOAD [WORKLOAD...]",
    (
        Option("-a --attach", "join its output and exit with its code"),
        Option("-i --interactive", "pass standard input on"),
        SIG_PROXY,
        DETACH_KEYS,
    ),
    complete="workload",
    exact_codes=True,
)
STOP = Command(
    stop,
    "ask workloads to end; kill those that don't in time",
    "WORKLOAD [WORKLOAD...]",
    (Option("-t --time --timeout", "seconds before SIGKILL", value="SECONDS", dest="time"),),
    complete="workload",
)
KILL = Command(
    kill,
    "send a signal to workloads",
    "WORKLOAD [WORKLOAD...]",
    (Option("-s --signal", "signal (KILL)", value="SIGNAL"),),
    complete="workload",
)
RM = Command(
    rm,
    "remove workloads",
    "WORKLOAD [WORKLOAD...]",
    (
        Option("-f --force", "kill it first if it runs; no error if it isn't there"),
        Option("-v --volumes", "its volumes without a name too"),
    ),
    complete="workload",
)
WAIT = Command(
    wait,
    "wait until workloads end and print their exit codes",
    "WORKLOAD [WORKLOAD...]",
    (
        Option(
            "--condition", "what to wait for", value="WHAT", choices=("not-running", "next-exit", "removed")
        ),
    ),
    complete="workload",
)
