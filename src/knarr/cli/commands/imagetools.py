"""`image save`: what is done with images that are here."""

from __future__ import annotations

from knarr.cli import output
from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option


def save(context: Context, a: Arguments) -> int:
    form = a.format or "docker-archive"
    output.write(a.output or "", lambda: context.client.save(a.operands, form=form))
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
