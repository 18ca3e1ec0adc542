"""`save`, `export`, `commit`: archives and images out of images and workloads."""

from __future__ import annotations

from knarr.cli import output, progress
from knarr.cli.context import Context, say
from knarr.cli.options import Arguments, Command, Option


def save(context: Context, a: Arguments) -> int:
    form = a.format or "docker-archive"
    output.write(a.output or "", lambda: context.client.save(a.operands, form=form))
    return 0


def export(context: Context, a: Arguments) -> int:
    output.write(a.output or "", lambda: context.client.export(a.operands[0]))
    return 0


def commit(context: Context, a: Arguments) -> int:
    name, *reference = a.operands
    lines = context.client.commit(
        name,
        reference=reference[0] if reference else None,
        author=a.author or "",
        message=a.message or "",
        changes=a.change,
        pause=a.pause if "pause" in a.given else True,
    )
    say(str(progress.show(lines, quiet=True).get("id", "")))
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
COMMIT = Command(
    commit,
    "make an image of what a workload changed in its files",
    "NAME [IMAGE[:TAG]]",
    (
        Option("-a --author", "who made it", value="TEXT"),
        Option("-m --message", "a comment for the history", value="TEXT"),
        Option("-c --change", "a Dockerfile instruction for the image's config", value="TEXT", many=True),
        Option("-p --pause", "hold the workload while its files are copied (true)"),
    ),
    complete="workload",
    notes="What is mounted in it stays out. Instructions: CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL "
    "ONBUILD STOPSIGNAL USER VOLUME WORKDIR.",
)
