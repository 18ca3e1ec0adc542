"""`volume create ls inspect rm`."""

from __future__ import annotations

from knarr.cli import spec, tables
from knarr.cli.context import Context, complain, each, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import KnarrError, NotFound

COLUMNS = ("Driver", "Name")


def create(context: Context, a: Arguments) -> int:
    name = a.operands[0] if a.operands else ""
    made = context.client.create_volume(name, labels=spec.labels(a.label, ()), driver=a.driver or "local")
    say(made["name"])
    return 0


def ls(context: Context, a: Arguments) -> int:
    found = context.client.volumes()
    if a.quiet:
        for item in found:
            say(item["name"])
        return 0
    rows = [
        {
            "Driver": item["driver"],
            "Name": item["name"],
            "Mountpoint": item["mountpoint"],
            "UsedBy": ", ".join(item["used_by"]),
            "Labels": ",".join(f"{key}={value}" for key, value in sorted(item["labels"].items())),
        }
        for item in found
    ]
    tables.show(rows, COLUMNS, a.format)
    return 0


def inspect(context: Context, a: Arguments) -> int:
    found, failed = [], 0
    for name in a.operands:
        try:
            found.append(context.client.volume(name))
        except KnarrError as error:
            complain(error)
            failed = 1
    tables.document(found, a.format)
    return failed


def rm(context: Context, a: Arguments) -> int:
    def remove(name: str) -> None:
        try:
            context.client.remove_volume(name)
        except NotFound:
            if not a.force:
                raise

    return each(a.operands, remove)


CREATE = Command(
    create,
    "make a volume",
    "[NAME]",
    (
        Option("-l --label", "label", value="KEY=VALUE", many=True),
        Option("-d --driver", "kind of volume", value="DRIVER", choices=("local",)),
    ),
    notes="Without a name it gets one of 64 hex digits. Mount it with run -v NAME:/path.",
)
LS = Command(ls, "list volumes", "", (tables.FORMAT, tables.QUIET))
INSPECT = Command(
    inspect,
    "all there is to know about volumes, as JSON",
    "NAME [NAME...]",
    (Option("-f --format", "a template such as '{{.mountpoint}}', or json", value="FORMAT"),),
)
RM = Command(
    rm,
    "remove volumes that no workload uses",
    "NAME [NAME...]",
    (Option("-f --force", "no error if it isn't there"),),
)
