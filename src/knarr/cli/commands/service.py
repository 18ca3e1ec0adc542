"""`system service`: the engine as a unit of systemd, so that it comes back after a reboot.

The unit is text of ours beside the administrator's own (/etc/systemd/system); `systemctl` is only asked to
read it. Sources: systemd.service(5), systemd.kill(5), systemd.resource-control(5). Out of scope: other
service managers, for which `daemon run` stays in the foreground.
"""

from __future__ import annotations

import os
import sys

from knarr.cli.context import DEFAULT_RUN, Context, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Conflict, Denied, Failed, Invalid, NotFound, Unavailable

UNITS = "/etc/systemd/system"
_RUNNING = "/run/systemd/system"
"""there when systemd is the init of this boot: sd_booted(3)"""
_MARK = "# made by knarr system service install"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@")

# KillMode=process: an end of the unit is the daemon's end, and nothing that runs notices. Delegate: the
# groups below the unit's are ours, systemd neither moves nor removes them. Type=notify: `daemon run`
# tells when the API answers.
_UNIT = """{mark}
[Unit]
Description=Knarr: containers and virtual machines ({run})
Wants=network-online.target
After=network-online.target local-fs.target firewalld.service nftables.service

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=2
TimeoutStartSec=120
TimeoutStopSec=60
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""


def service(context: Context, a: Arguments) -> int:
    verb, *rest = a.operands or ["status"]
    verbs = {"install": _install, "uninstall": _uninstall, "status": _status}
    if rest or verb not in verbs:
        raise Invalid(
            f"system service can't do {' '.join(a.operands)!r}", hint="it takes install, uninstall or status"
        )
    return verbs[verb](context, a)


def unit_name(context: Context, name: str | None) -> str:
    """The unit's file name: `knarr.service`, or one that tells the instances of a host apart."""
    if name is None:
        own = "" if context.run == DEFAULT_RUN else "-" + context.run.strip("/").replace("/", "-")
        name = "knarr" + "".join(c if c in _NAME_CHARACTERS else "_" for c in own)
    name = name.removesuffix(".service")
    if not name or not set(name) <= _NAME_CHARACTERS or name.startswith((".", "-")) or len(name) > 200:
        raise Invalid(f"{name!r} is not a unit's name", hint="letters, digits, - _ . @")
    return name + ".service"


def unit_text(context: Context) -> str:
    launcher = os.path.join(os.path.dirname(sys.executable), "knarr")
    words = (launcher, "--root", context.root, "--run", context.run, "daemon", "run")
    return _UNIT.format(mark=_MARK, run=_literal(context.run), command=" ".join(map(_quoted, words)))


def _literal(text: str) -> str:
    if any(ord(c) < 32 for c in text):
        raise Invalid(f"{text!r}: a unit can't name it", hint="choose a folder without control characters")
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of ExecStart: systemd.syntax(7) undoes quotes, `%` and `$`."""
    return '"' + _literal(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'


def _install(context: Context, a: Arguments) -> int:
    text = unit_text(context)
    if a.dry_run:
        sys.stdout.write(text)
        return 0
    if not a.no_start:
        _require_systemd("--no-start only writes the unit; other managers can run: knarr daemon run")
    path = os.path.join(a.units or UNITS, unit_name(context, a.name))
    before = _ours(path)
    if before != text:
        _publish(path, text)
    say(f"{path}: {'written' if before is None else 'as it was' if before == text else 'changed'}")
    if a.no_start:
        return 0
    unit = os.path.basename(path)
    _systemctl("daemon-reload")
    _systemctl("enable", unit)
    _systemctl("restart", unit)
    say(f"{unit}: enabled and started; systemctl status {unit}")
    return 0


def _uninstall(context: Context, a: Arguments) -> int:
    path = os.path.join(a.units or UNITS, unit_name(context, a.name))
    if _ours(path) is None:
        raise NotFound(f"{path}: there is no such unit", hint="knarr system service install")
    if os.path.isdir(_RUNNING) and not a.no_start:
        _systemctl("disable", "--now", os.path.basename(path))
    os.unlink(path)
    if os.path.isdir(_RUNNING) and not a.no_start:
        _systemctl("daemon-reload")
    say(f"{path}: removed; workloads go on")
    return 0


def _status(context: Context, a: Arguments) -> int:
    path = os.path.join(a.units or UNITS, unit_name(context, a.name))
    text = _ours(path)
    if text is None:
        say(f"{path}: not installed")
        return 1
    say(f"{path}: {'installed' if text == unit_text(context) else 'differs: install it again'}")
    if not os.path.isdir(_RUNNING):
        say("systemd does not run on this host")
        return 1
    unit = os.path.basename(path)
    states = [_ask("is-enabled", unit), _ask("is-active", unit)]
    say(f"{unit}: {', '.join(states)}")
    return 0 if states == ["enabled", "active"] else 1


def _ours(path: str) -> str | None:
    """The unit's text; None without one. Raises `Conflict` for a file that somebody else wrote."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Denied(f"{path}: {error.strerror}", hint="run as root") from error
    if not text.startswith(_MARK):
        raise Conflict(f"{path} is not knarr's", hint="choose another name with --name")
    return text


def _publish(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except PermissionError as error:
        raise Denied(f"{path}: permission denied", hint="run as root") from error
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", hint="--units names another folder") from error


def _require_systemd(hint: str) -> None:
    if not os.path.isdir(_RUNNING):
        raise Unavailable("systemd does not run on this host", hint=hint)


def _systemctl(*words: str) -> None:
    import subprocess

    done = subprocess.run(["systemctl", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise Failed(
            f"systemctl {' '.join(words)}: {text or done.returncode}", hint=f"journalctl -u {words[-1]}"
        )


def _ask(verb: str, unit: str) -> str:
    import subprocess

    done = subprocess.run(
        ["systemctl", verb, unit], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.stdout.decode(errors="replace").strip() or "unknown"


SERVICE = Command(
    service,
    "run the engine as a service of systemd",
    "[install|uninstall|status]",
    (
        Option("--name", "the unit's name (knarr, or one made of the run folder)", value="NAME"),
        Option("--units", f"the folder of units (default {UNITS})", value="FOLDER", complete="folder"),
        Option("--no-start", "only write or remove the unit, don't ask systemd"),
        Option("--dry-run", "install: print the unit, write nothing"),
    ),
    notes="The unit serves the --root and --run given before the verb. Its end, and a restart, leave "
    "workloads alone: `knarr daemon stop --workloads` ends those.",
)
