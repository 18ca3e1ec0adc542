"""`system templates`: the saved microVMs that starts resume."""

from __future__ import annotations

import time

from knarr.cli import tables
from knarr.cli.context import Context, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model import units
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COLUMNS = ("Key", "Kernel", "Accelerator", "Memory", "CPUs", "Network", "Slots", "Size", "Used")


def templates(context: Context, a: Arguments) -> int:
    verb, *keys = a.operands or ["ls"]
    if verb in ("ls", "list") and not keys:
        tables.show([_row(item) for item in context.client.templates()], COLUMNS, a.format)
        return 0
    if verb == "make" and not keys:
        made = context.client.make_template(
            memory=units.parse_bytes(a.memory) if a.memory else None,
            cpus=units.parse_cpus(a.cpus) if a.cpus else None,
            kernel=a.kernel,
            network=a.network,
        )
        say(made["key"])
        return 0
    if verb in ("rm", "remove") and keys:
        for key in keys:
            say(context.client.remove_template(key)["key"])
        return 0
    raise Invalid(
        f"system templates can't do {' '.join(a.operands)!r}", hint="it takes ls, make, or rm KEY..."
    )


def _row(item: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Key": str(item["key"]),
        "Kernel": str(item["kernel"]),
        "Accelerator": str(item["accelerator"]),
        "Memory": f"{int(item['memory']) >> 20}M",
        "CPUs": str(item["cpus"]),
        "Network": "bridge" if item["network"] else "none",
        "Slots": str(item["slots"]),
        "Size": units.format_bytes(int(item["size"])),
        "Used": f"{units.format_ago(time.time() - int(item['used']) / 1e9)} ago",
    }


TEMPLATES = Command(
    templates,
    "list, make or remove the saved microVMs that starts resume",
    "[ls|make|rm] [KEY...]",
    (
        Option("-m --memory", "make: for workloads with this limit", value="BYTES"),
        Option("--cpus", "make: for workloads with this limit", value="NUMBER"),
        Option("--network", "make: for workloads on it", value="NETWORK", choices=("bridge", "none")),
        Option("--kernel", "make: for this kernel of one's own", value="PATH", complete="file"),
        Option("-f --format", "json, or a template such as '{{.Key}}'", value="FORMAT"),
    ),
    notes="Without a verb it lists. They are made by themselves, in idle time after the first cold start of "
    "each size, and made anew when kernel, QEMU or Knarr change.",
)
