"""Where each verb's command lives; modules are loaded when their verb is called.

The order is the help's order. Out of scope: parsing and the commands themselves.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.cli.options import Command

_COMMANDS = "knarr.cli.commands."

VERBS: dict[str, str] = {
    "run": "run.RUN",
    "create": "run.CREATE",
    "start": "lifecycle.START",
    "stop": "lifecycle.STOP",
    "kill": "lifecycle.KILL",
    "restart": "verbs.RESTART",
    "pause": "verbs.PAUSE",
    "unpause": "verbs.UNPAUSE",
    "rename": "verbs.RENAME",
    "update": "verbs.UPDATE",
    "top": "verbs.TOP",
    "diff": "verbs.DIFF",
    "rm": "lifecycle.RM",
    "wait": "lifecycle.WAIT",
    "prune": "prunes.WORKLOADS",
    "ps": "listing.PS",
    "logs": "logs.LOGS",
    "exec": "attach.EXEC",
    "attach": "attach.ATTACH",
    "cp": "copy.CP",
    "export": "imagetools.EXPORT",
    "commit": "imagetools.COMMIT",
    "inspect": "listing.INSPECT",
    "stats": "stats.STATS",
    "events": "events.EVENTS",
    "plan": "run.PLAN",
    "images": "images.LS",
    "pull": "fetch.PULL",
    "push": "fetch.PUSH",
    "load": "fetch.LOAD",
    "save": "imagetools.SAVE",
    "import": "fetch.IMPORT",
    "tag": "images.TAG",
    "history": "imageinfo.HISTORY",
    "rmi": "images.RM",
    "info": "system.INFO",
    "bench": "bench.BENCH",
    "version": "system.VERSION",
    "completion": "shell.COMPLETION",
    "help": "shell.HELP_VERB",
}

GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "image": (
        "images: list, fetch, make, remove",
        {
            "ls": "images.LS",
            "inspect": "images.INSPECT",
            "rm": "images.RM",
            "prune": "prunes.IMAGES",
            "tag": "images.TAG",
            "history": "imageinfo.HISTORY",
            "diff": "imageinfo.DIFF",
            "gc": "imageinfo.GC",
            "check": "imageinfo.IMAGE_CHECK",
            "pull": "fetch.PULL",
            "push": "fetch.PUSH",
            "load": "fetch.LOAD",
            "save": "imagetools.SAVE",
            "import": "fetch.IMPORT",
            "bootstrap": "fetch.BOOTSTRAP",
        },
    ),
    "volume": (
        "volumes: folders that outlive workloads",
        {
            "create": "volumes.CREATE",
            "ls": "volumes.LS",
            "inspect": "volumes.INSPECT",
            "rm": "volumes.RM",
            "prune": "prunes.VOLUMES",
        },
    ),
    "system": (
        "the host and the engine: what they can do, what they use",
        {
            "info": "system.INFO",
            "check": "system.CHECK",
            "df": "imageinfo.DF",
            "prune": "prunes.SYSTEM",
            "templates": "templates.TEMPLATES",
            "service": "service.SERVICE",
        },
    ),
    "daemon": (
        "the engine's processes",
        {
            "start": "daemon.START",
            "stop": "daemon.STOP",
            "status": "daemon.STATUS",
            "upgrade": "daemon.UPGRADE",
            "run": "daemon.RUN",
        },
    ),
}

ALIASES = {"list": "ls", "remove": "rm"}
"""inside groups, as docker has them"""


def load(target: str) -> Command:
    """The command behind a table entry such as `run.RUN`."""
    import importlib

    module, _, name = target.partition(".")
    return getattr(importlib.import_module(_COMMANDS + module), name)  # type: ignore[no-any-return]


def all_commands() -> Iterator[tuple[str, Command]]:
    """Every verb with its command, such as `("image ls", …)`; for help, man page and completion."""
    for verb, target in VERBS.items():
        yield verb, load(target)
    for group, (_, verbs) in GROUPS.items():
        for verb, target in verbs.items():
            yield f"{group} {verb}", load(target)
