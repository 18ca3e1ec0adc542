"""`save`, `export`: what is done with images that are here, and what workloads leave as archives."""

from __future__ import annotations

from knarr.cli import output
from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option


def save(context: Context, a: Arguments) -> int:
    form = a.format or "docker-archive"
    output.write(a.output or "", lambda: context.client.save(a.operands, form=form))
    return 0


def export(context: Context, a: Arguments) -> int:
    output.write(a.output or "", lambda: context.client.export(a.operands[0]))
    return 0


OUTPUT = Option("-o --output", "write to this file (standard output)", value="FILE", complete="file")
SAVE = Command(
    save,
    "write images into an archive, byte by byte as they were pulled",
    "IMAGE [IMAGE...]",
    (
        OUTPUT,
        Option(
            "--format",
            "docker-archive (an OCI layout at the same time) or oci-archive",
            value="FORM",
            choices=("docker-archive", "oci-archive"),
        ),
    ),
    complete="image",
    notes="knarr load, docker load, podman load and skopeo read it.",
)
EXPORT = Command(
    export,
    "write a workload's whole file tree into a tar",
    "NAME",
    (OUTPUT,),
    complete="workload",
    notes="What is mounted in it stays out. knarr import makes an image of it.",
)
