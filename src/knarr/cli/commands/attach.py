"""`exec` and `attach`: the user's terminal joined to a process behind the wall."""

from __future__ import annotations

from knarr.cli import spec, streams, terminal
from knarr.cli.commands.run import PROCESS_OPTIONS
from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Conflict

SIG_PROXY = Option(
    "--sig-proxy", "pass signals on (true)", value="BOOL", choices=("true", "false"), optional="true"
)
DETACH_KEYS = Option("--detach-keys", "keys that detach from it", value="KEYS")


def execute(context: Context, a: Arguments) -> int:
    name = a.operands[0]
    wanted = spec.process(a)
    if a.detach:
        context.client.execute_detached(name, wanted)
        return 0
    spec.check_terminal(tty=a.tty, stdin=a.interactive)
    found = (terminal.size(0) or terminal.size(1)) if a.tty else None
    if found:
        wanted["tty_size"] = list(found)
    keys = a.detach_keys or terminal.DEFAULT_DETACH_KEYS
    session = context.client.execute(name, wanted)
    pump = streams.Pump(session, tty=a.tty, stdin=a.interactive, detach_keys=keys)
    return streams.finish(pump.run())


def join(
    context: Context, name: str, *, stdin: bool, proxy: bool, detach_keys: str | None, start: bool = False
) -> int:
    """Attach to a workload (and start it); its exit code."""
    found = context.client.inspect(name)
    if not start and found["status"] not in ("running", "stopping"):
        raise Conflict(f"workload {name!r} is {found['status']}", hint=f"start it: knarr start {name}")
    wanted = found.get("spec") or {}
    tty = bool(wanted.get("tty"))
    stdin = stdin and bool(wanted.get("stdin_open"))
    spec.check_terminal(tty=tty, stdin=stdin)
    session = context.client.attach(found["id"], stdin=stdin, start=start)
    keys = detach_keys or terminal.DEFAULT_DETACH_KEYS
    return streams.finish(streams.Pump(session, tty=tty, stdin=stdin, proxy=proxy, detach_keys=keys).run())


def attach(context: Context, a: Arguments) -> int:
    proxy = a.sig_proxy != "false"
    return join(context, a.operands[0], stdin=not a.no_stdin, proxy=proxy, detach_keys=a.detach_keys)


EXEC = Command(
    execute,
    "run one more program inside a running workload",
    "WORKLOAD COMMAND [ARG...]",
    (
        Option("-d --detach", "leave it in the background"),
        *PROCESS_OPTIONS,
        Option("--privileged", "with all capabilities"),
    ),
    intermixed=False,
    exact_codes=True,
    complete="workload",
)
ATTACH = Command(
    attach,
    "join a running workload's terminal or streams",
    "WORKLOAD",
    (Option("--no-stdin", "only watch"), SIG_PROXY, DETACH_KEYS),
    complete="workload",
    exact_codes=True,
)
