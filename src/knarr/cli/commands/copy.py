"""`cp`: files between the host and a workload, by docker's path rules; `-` is a tar stream."""

from __future__ import annotations

import os

from knarr.cli import copyrules, tarfiles
from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.streams import write_all
from knarr.model.errors import Invalid, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def cp(context: Context, a: Arguments) -> int:
    source, target = (copyrules.split(text) for text in a.operands)
    if source[0] is not None and target[0] is not None:
        raise Invalid(
            "cp: from one workload into another it takes two steps",
            hint="knarr cp ONE:PATH - | knarr cp - OTHER:FOLDER",
        )
    if source[0] is None and target[0] is None:
        raise Invalid(
            "cp: one of source and target must be in a workload", hint="knarr cp FILE WORKLOAD:PATH"
        )
    if source[0] is not None:
        _from_workload(context, source[0], source[1], target[1], follow=a.follow_link)
    elif target[0] is not None:
        _to_workload(context, source[1], target[0], target[1], a)
    return 0


def remote_kind(context: Context, name: str, path: str) -> str:
    """What a path inside is; a link at the end of a target is followed, as docker does."""
    try:
        return copyrules.kind_of_mode(context.client.stat_path(name, path)["mode"])
    except NotFound:
        # tells a missing path from a missing workload
        context.client.inspect(name)
        return copyrules.Kind.MISSING


def _resolve_link(context: Context, name: str, path: str) -> str:
    """Follow a link at the end of a path inside; the daemon resolves everything before it."""
    for _ in range(40):
        try:
            found = context.client.stat_path(name, path)
        except NotFound:
            return path
        link = found.get("linkTarget")
        if not link or copyrules.kind_of_mode(found["mode"]) != copyrules.Kind.LINK:
            return path
        tail = "/" if copyrules.wants_folder(path) else ""
        path = os.path.normpath(os.path.join("/", os.path.dirname(path.rstrip("/")), link)) + tail
    return path


def _from_workload(context: Context, name: str, path: str, target: str, *, follow: bool) -> None:
    if follow:
        path = _resolve_link(context, name, path)
    if target == "-":
        for piece in context.client.get_archive(name, path)[1]:
            write_all(1, piece)
        return
    kind = remote_kind(context, name, path)
    if kind == copyrules.Kind.MISSING:
        raise NotFound(f"{name}:{path}: no such file or folder")
    rule = copyrules.decide(path, kind, target, copyrules.kind_of_path(target))
    archive = context.client.get_archive(name, path)[1]
    tarfiles.extract(archive, rule.folder, rule.rename, copyrules.member_name(path))


def _to_workload(context: Context, source: str, name: str, path: str, a: Arguments) -> None:
    path = _resolve_link(context, name, path)
    if source == "-":
        if remote_kind(context, name, path) != copyrules.Kind.FOLDER:
            raise Invalid(f"{name}:{path}: a tar needs a folder to go into", hint="name a folder that exists")
        context.client.put_archive(name, path, _stdin())
        return
    real = os.path.realpath(source) + ("/." if source.endswith("/.") else "") if a.follow_link else source
    kind = copyrules.kind_of_path(real)
    if kind == copyrules.Kind.MISSING:
        raise NotFound(f"{source}: no such file or folder")
    rule = copyrules.decide(source, kind, path, remote_kind(context, name, path))
    tar = tarfiles.pack(real, rule.rename or copyrules.member_name(source), keep_owner=a.archive)
    context.client.put_archive(name, rule.folder, tar)


def _stdin() -> Iterator[bytes]:
    while data := os.read(0, 256 * 1024):
        yield data


CP = Command(
    cp,
    "copy files between the host and a workload",
    "SOURCE TARGET",
    (
        Option("-L --follow-link", "copy what a link at SOURCE points to"),
        Option("-a --archive", "keep owners and groups"),
        Option("-q --quiet", "accepted for docker's sake"),
    ),
    complete="file",
    notes="SOURCE and TARGET are PATH, WORKLOAD:PATH, or - for a tar stream. SOURCE/. means the content "
    "of the folder. A folder that doesn't exist is made; its parent must exist.",
)
