"""`run`, `create`, `plan`: from options to a workload, with the image pulled when it is missing."""

from __future__ import annotations

import os

from knarr.cli import limits, spec
from knarr.cli.context import Context, say, warn
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Conflict, Invalid, KnarrError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WALLS = ("container", "microvm", "sandbox", "machine", *spec.ISOLATION_ALIASES)

ISOLATION = Option(
    "--isolation --runtime", "the wall around the workload", value="WALL", choices=WALLS, dest="isolation"
)
PROCESS_OPTIONS = (
    Option(
        "-e --env", "set an environment variable; KEY alone passes yours on", value="KEY[=VALUE]", many=True
    ),
    Option("--env-file", "environment variables from a file", value="FILE", many=True, complete="file"),
    Option("-u --user", "run as this user", value="USER[:GROUP]"),
    Option("-w --workdir", "working directory inside", value="DIR"),
    Option("-t --tty", "give it a terminal"),
    Option("-i --interactive", "pass standard input on"),
    Option("--detach-keys", "keys that detach from it", value="KEYS"),
)
RESTART = Option(
    "--restart",
    "start it again when it has ended: no, always, unless-stopped, on-failure[:NUMBER]",
    value="POLICY",
)
HEALTH_OPTIONS = (
    Option("--health-cmd", "command for the shell that tells whether it is well", value="COMMAND"),
    Option("--health-interval", "time between two checks (30s)", value="TIME"),
    Option("--health-timeout", "time that one may take (30s)", value="TIME"),
    Option("--health-retries", "failures in a row that make it unhealthy (3)", value="NUMBER"),
    Option("--health-start-period", "time after the start in which failures don't count", value="TIME"),
    Option("--health-start-interval", "time between two checks until then (5s)", value="TIME"),
    Option("--no-healthcheck", "without the image's health check"),
)
SECURITY_OPTIONS = (
    Option(
        "--security-profile", "set of defaults for the wall", value="PROFILE", choices=("default", "hardened")
    ),
    Option(
        "--security-opt",
        "no-new-privileges, seccomp=FILE|unconfined, mask=PATH, unmask=PATH|ALL",
        value="OPTION",
        many=True,
    ),
    Option("--privileged", "all capabilities and devices, no filters: not a wall any more"),
    Option("--cap-add", "add a capability, or ALL", value="NAME", many=True),
    Option("--cap-drop", "drop a capability, or ALL", value="NAME", many=True),
    Option("--read-only", "make the root file system read-only"),
)
NAMESPACE_OPTIONS = (
    Option("--userns", "user ids: host, auto[:size=N], keep-id[:uid=N,gid=N], remap", value="MODE"),
    Option("--pid", "processes: host, container:NAME", value="MODE"),
    Option("--ipc", "shared memory: private, shareable, none, host, container:NAME", value="MODE"),
    Option("--uts", "host name: host", value="MODE"),
    Option("--cgroupns", "view of control groups", value="MODE", choices=("private", "host")),
)
CREATE_OPTIONS = (
    ISOLATION,
    Option("--name", "name of the workload", value="NAME"),
    Option("--rm", "remove it when it has ended"),
    RESTART,
    *PROCESS_OPTIONS,
    Option("--entrypoint", "program in place of the image's; empty clears it", value="PROGRAM"),
    Option("--group-add", "additional group inside", value="GROUP", many=True),
    Option("-h --hostname", "host name inside", value="NAME"),
    Option("--init", "run a small init as process 1 that reaps and forwards signals"),
    Option("-v --volume", "mount a host path or a named volume", value="SOURCE:TARGET[:ro]", many=True),
    Option("--device", "device of the host (containers)", value="PATH[:PATH][:rwm]", many=True),
    Option("--shm-size", "size of /dev/shm (64m)", value="SIZE"),
    Option("--sysctl", "setting of its own namespaces", value="NAME=VALUE", many=True),
    Option("--add-host", "line of /etc/hosts; host-gateway is this host", value="NAME:ADDRESS", many=True),
    Option("--dns", "resolver in place of the network's", value="ADDRESS", many=True),
    Option("--dns-search", "domain to search names in; . is none", value="DOMAIN", many=True),
    Option("--dns-option --dns-opt", "option for resolv.conf", value="OPTION", many=True),
    Option("--volumes-from", "mount what that workload has mounted", value="WORKLOAD[:ro]", many=True),
    Option("--mount", "the same in words: type=bind,source=…,target=…,readonly", value="SPEC", many=True),
    Option("--tmpfs", "mount an empty folder in memory", value="TARGET[:OPTIONS]", many=True),
    Option("-p --publish", "publish a port on the host", value="[IP:][HOST:]PORT[/udp]", many=True),
    Option("--network --net", "network: bridge, none, host, container:NAME", value="MODE"),
    *NAMESPACE_OPTIONS,
    *HEALTH_OPTIONS,
    *limits.OPTIONS,
    *SECURITY_OPTIONS,
    Option("-l --label", "label", value="KEY=VALUE", many=True),
    Option("--label-file", "labels from a file", value="FILE", many=True, complete="file"),
    Option(
        "--log-driver", "what is done with its output", value="DRIVER", choices=("json-file", "local", "none")
    ),
    Option("--log-opt", "max-size=10m, max-file=3", value="KEY=VALUE", many=True),
    Option("--stop-signal", "signal that asks it to end", value="SIGNAL"),
    Option("--stop-timeout", "seconds between that signal and SIGKILL", value="SECONDS"),
    Option("--kernel", "microvm: boot this kernel", value="FILE", complete="file"),
    Option("--pull", "when to pull the image", value="WHEN", choices=("missing", "always", "never")),
    Option("--platform", "platform to pull, such as linux/amd64", value="PLATFORM"),
    Option("--insecure-registry", "allow plain HTTP and unknown certificates for the pull"),
    Option("-q --quiet", "no progress of the pull"),
    Option("--cidfile", "write the workload's id into this new file", value="FILE", complete="file"),
    Option("--plan", "print the steps of the start and do nothing"),
)
RUN_OPTIONS = (
    Option("-d --detach", "leave it in the background and print its id"),
    Option("-a --attach", "stream to attach: stdin, stdout, stderr", value="STREAM", many=True),
    Option("--sig-proxy", "pass signals on (true)", value="BOOL", choices=("true", "false"), optional="true"),
    *CREATE_OPTIONS,
)


def create_workload(context: Context, a: Arguments) -> dict[str, Any]:
    """Create it, pulling the image first when that is wanted. Gives `{id, name, warnings}`."""
    wanted = spec.workload(a)
    if a.tty:
        from knarr.cli import terminal

        found = terminal.size(0) or terminal.size(1)
        if found:
            wanted["tty_size"] = list(found)
    if a.cidfile and os.path.exists(a.cidfile):
        raise Conflict(f"{a.cidfile}: the file exists", hint="remove it, or name another with --cidfile")
    created = _create(context, a, wanted)
    for warning in created.get("warnings") or ():
        warn(warning)
    if created.get("wanting"):
        from knarr.cli import progress

        progress.show(context.client.provision(created["id"]), quiet=a.quiet)
    if a.cidfile:
        with open(a.cidfile, "x", encoding="ascii") as file:
            file.write(created["id"])
    return created


def _create(context: Context, a: Arguments, wanted: dict[str, Any]) -> dict[str, Any]:
    policy = a.pull or "missing"
    if policy == "always":
        _pull(context, a, wanted["image"])
    try:
        return dict(context.client.create(wanted))
    except NotFound as error:
        if policy != "missing" or not _is_missing_image(context, wanted["image"]):
            raise
        if not a.quiet:
            import sys

            sys.stderr.write(f"image {wanted['image']} is not here yet, pulling it\n")
        _pull(context, a, wanted["image"], missing=error)
    return dict(context.client.create(wanted))


def _is_missing_image(context: Context, image: str) -> bool:
    """NotFound may also be a network's or a kernel's; only an image that isn't there is worth a pull."""
    try:
        context.client.image(image)
    except NotFound:
        return True
    return False


def _pull(context: Context, a: Arguments, image: str, missing: KnarrError | None = None) -> None:
    if missing is not None and _looks_like_id(image):
        raise missing
    from knarr.cli import progress

    lines = context.client.pull(image, platform=a.platform, insecure=a.insecure_registry)
    progress.show(lines, quiet=a.quiet)


def _looks_like_id(image: str) -> bool:
    return image.startswith("sha256:")


def plan(context: Context, a: Arguments) -> int:
    wanted = spec.workload(a)
    try:
        steps = context.client.plan(wanted)["steps"]
    except NotFound as error:
        if a.pull == "never" or not _is_missing_image(context, wanted["image"]):
            raise
        _pull(context, a, wanted["image"], missing=error)
        steps = context.client.plan(wanted)["steps"]
    for step in steps:
        say(step)
    return 0


def create(context: Context, a: Arguments) -> int:
    if a.plan:
        return plan(context, a)
    say(create_workload(context, a)["id"])
    return 0


def run(context: Context, a: Arguments) -> int:
    if a.plan:
        return plan(context, a)
    if a.detach and a.attach:
        raise Invalid("-d and -a exclude each other")
    if not a.detach:
        spec.check_terminal(tty=a.tty, stdin=a.interactive)
    created = create_workload(context, a)
    try:
        if a.detach:
            context.client.start(created["id"])
            say(created["id"])
            return 0
        return _foreground(context, a, created["id"])
    except KnarrError:
        if a.rm:
            _remove_unstarted(context, created["id"])
        raise


def _foreground(context: Context, a: Arguments, identity: str) -> int:
    from knarr.cli import streams, terminal

    wanted = {name.lower() for name in a.attach} or {"stdin", "stdout", "stderr"}
    if wanted - {"stdin", "stdout", "stderr"}:
        raise Invalid(f"-a {', '.join(a.attach)}", hint="stdin, stdout or stderr")
    stdin = a.interactive and "stdin" in wanted
    session = context.client.attach(identity, stdin=stdin, start=True)
    pump = streams.Pump(
        session,
        tty=a.tty,
        stdin=stdin,
        stdout="stdout" in wanted,
        stderr="stderr" in wanted,
        proxy=a.sig_proxy != "false",
        detach_keys=a.detach_keys or terminal.DEFAULT_DETACH_KEYS,
    )
    return streams.finish(pump.run())


def _remove_unstarted(context: Context, identity: str) -> None:
    """`--rm` holds for a workload that never ran as well; one that runs (its stream broke) is left alone."""
    try:
        context.client.remove(identity)
    except KnarrError:
        pass


RUN = Command(
    run,
    "create a workload and start it",
    "IMAGE [COMMAND...]",
    RUN_OPTIONS,
    intermixed=False,
    exact_codes=True,
    complete="image",
    notes="Exits with the program's code; 125 when Knarr failed, 126 when the program can't be executed, "
    "127 when it isn't there, 128+n when signal n ended it.",
)
CREATE = Command(
    create,
    "create a workload without starting it",
    "IMAGE [COMMAND...]",
    CREATE_OPTIONS,
    intermixed=False,
    exact_codes=True,
    complete="image",
)
PLAN = Command(
    plan,
    "print the steps that starting a workload would take",
    "IMAGE [COMMAND...]",
    CREATE_OPTIONS,
    intermixed=False,
    exact_codes=True,
    complete="image",
)
