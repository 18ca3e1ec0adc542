"""Spec + image config → the one `Process` to run, by docker's rules.

Pure. Out of scope: which capabilities a security profile means (the caller brings them) and what a name in
`user` resolves to (that happens inside, from the image's own files).
"""

from __future__ import annotations

import posixpath
import re
import signal
from typing import TYPE_CHECKING

from knarr.model.errors import Invalid
from knarr.model.workload import ExecSpec, Process, SecurityProfile, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.model.resource import ImageConfig

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REAL_TIME = re.compile(r"RTMIN[+]([0-9]{1,2})|RTMAX-([0-9]{1,2})", re.ASCII)


def merge(spec: WorkloadSpec, image: ImageConfig, hostname: str, capabilities: tuple[str, ...]) -> Process:
    """The workload's first process. Raises `Invalid`."""
    return Process(
        args=command_line(spec, image),
        env=environment(spec.env, image.env, hostname, tty=spec.tty),
        cwd=working_folder(spec.workdir or image.workdir),
        user=_checked(spec.user if spec.user is not None else image.user, "user"),
        groups=tuple(_checked(group, "group") for group in spec.groups),
        tty=spec.tty,
        tty_size=tty_size(spec.tty_size),
        capabilities=capabilities,
        no_new_privileges=_no_new_privileges(spec),
        seccomp=spec.security.seccomp != "unconfined" and not spec.security.privileged,
        seccomp_profile=spec.security.seccomp if spec.security.seccomp.startswith("{") else "",
        rlimits=spec.rlimits,
        oom_score_adj=spec.oom_score_adj,
        init=spec.init,
    )


def merge_exec(spec: ExecSpec, main: Process, all_capabilities: tuple[str, ...]) -> Process:
    """One more process beside `main`: its environment, folder and user unless the exec says otherwise."""
    if not spec.args:
        raise Invalid("exec needs a command")
    require_absolute(spec.workdir)
    env = list(main.env)
    if spec.tty and not any(item.startswith("TERM=") for item in env):
        env.append("TERM=xterm")
    return Process(
        args=_checked_args(spec.args),
        env=_override(env, spec.env),
        cwd=working_folder(spec.workdir or main.cwd),
        user=_checked(spec.user if spec.user is not None else main.user, "user"),
        groups=main.groups if spec.user is None else (),
        tty=spec.tty,
        tty_size=tty_size(spec.tty_size),
        capabilities=all_capabilities if spec.privileged else main.capabilities,
        no_new_privileges=main.no_new_privileges,
        seccomp=main.seccomp and not spec.privileged,
        seccomp_profile=main.seccomp_profile,
        rlimits=main.rlimits,
        oom_score_adj=main.oom_score_adj,
    )


def command_line(spec: WorkloadSpec, image: ImageConfig) -> tuple[str, ...]:
    """An entrypoint of one's own drops the image's command as well; `[""]` drops both of the image's."""
    entrypoint = image.entrypoint if spec.entrypoint is None else spec.entrypoint
    command = spec.command or ()
    if not command and not spec.entrypoint:
        command = image.cmd
    if entrypoint == ("",):
        entrypoint = ()
    args = (*entrypoint, *command)
    if not args:
        raise Invalid(
            f"no command specified for {spec.image!r}", hint="the image names none: give one after the image"
        )
    return _checked_args(args)


def environment(own: tuple[str, ...], image: tuple[str, ...], hostname: str, *, tty: bool) -> tuple[str, ...]:
    """Defaults, then the image's, then the user's; later ones replace, `KEY` without a value removes."""
    defaults = [DEFAULT_PATH, f"HOSTNAME={hostname}"]
    if tty:
        defaults.append("TERM=xterm")
    return _override(_override(defaults, image), own)


def require_absolute(path: str | None) -> None:
    """A user's working directory; docker refuses a relative one as well. Raises `Invalid`."""
    if path and not path.startswith("/"):
        raise Invalid(f"the working directory {path[:200]!r} is not absolute", hint=f"such as /{path[:200]}")


def working_folder(path: str) -> str:
    """Absolute and without `.` and `..`; a relative one counts from the root, as docker has it."""
    _checked(path, "working directory")
    return posixpath.normpath("/" + path.lstrip("/")) if path else "/"


def stop_signal(spec: WorkloadSpec, image: ImageConfig) -> int:
    """An image's nonsense counts as SIGTERM (image bytes must not stop a stop), a user's is refused."""
    if spec.stop_signal:
        return parse_signal(spec.stop_signal)
    try:
        return parse_signal(image.stop_signal) if image.stop_signal else int(signal.SIGTERM)
    except Invalid:
        return int(signal.SIGTERM)


def parse_signal(text: str) -> int:
    """`TERM`, `SIGTERM`, `15`, `RTMIN+3`. Raises `Invalid`."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        number = int(name) if len(name) < 10 else 0
    elif real_time := _REAL_TIME.fullmatch(name):
        above, below = real_time.groups()
        number = signal.SIGRTMIN + int(above) if above else signal.SIGRTMAX - int(below)
    else:
        found = getattr(signal, f"SIG{name}", None)
        number = int(found) if isinstance(found, signal.Signals) else 0
    if not 1 <= number <= signal.SIGRTMAX:
        raise Invalid(f"{text[:40]!r} is not a signal", hint="a name such as TERM or a number from 1 to 64")
    return number


def tty_size(size: tuple[int, ...]) -> tuple[int, ...]:
    if size and (len(size) != 2 or not all(1 <= value <= 0xFFFF for value in size)):
        raise Invalid(f"tty size {list(size)} is not (columns, rows)")
    return size


def _no_new_privileges(spec: WorkloadSpec) -> bool:
    return spec.security.no_new_privileges or spec.security.profile is SecurityProfile.HARDENED


def _override(base: Iterable[str], own: tuple[str, ...]) -> tuple[str, ...]:
    """Replaced in place, so that the order stays the one that docker shows."""
    values = {item.partition("=")[0]: item for item in base}
    for item in own:
        key, equals, _ = _checked(item, "environment").partition("=")
        if not key:
            raise Invalid(f"environment entry {item!r} has no name", hint="KEY=value")
        if equals:
            values[key] = item
        else:
            values.pop(key, None)
    return tuple(values.values())


def _checked_args(args: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_checked(arg, "command") for arg in args)


def _checked(text: str, what: str) -> str:
    if "\0" in text:
        raise Invalid(f"{what} {text[:40]!r} has a zero byte")
    return text
