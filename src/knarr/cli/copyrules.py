"""Docker's rules of `cp`: what is extracted where, under which name. Pure but for `kind_of_path`."""

from __future__ import annotations

import os
import stat

from knarr.model.errors import Conflict, Invalid, NotFound


class Kind:
    """What a path is. Plain constants: an enum would be loaded for `cp` alone, but these read the same."""

    MISSING = "missing"
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class Rule:
    """Extract into `folder`; the top entry is renamed to `rename`, or keeps its name when that is empty.
    `.` as the name stands for the content of the source folder.
    """

    __slots__ = ("folder", "rename")

    def __init__(self, folder: str, rename: str) -> None:
        self.folder = folder
        self.rename = rename


def split(text: str) -> tuple[str | None, str]:
    """`WORKLOAD:PATH` or a path of the host; `./a:b` and `/a:b` are of the host."""
    if text == "-" or text.startswith(("/", ".")):
        return None, text
    name, colon, path = text.partition(":")
    if not colon or "/" in name:
        return None, text
    if not path:
        raise Invalid(f"{text!r}: the path is missing", hint="WORKLOAD:/PATH")
    return name, path if path.startswith("/") else "/" + path


def kind_of_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return Kind.LINK
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.FILE


def kind_of_path(path: str) -> str:
    """A link to a folder counts as one when the path ends in a slash."""
    try:
        return kind_of_mode(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return Kind.MISSING


def wants_folder(path: str) -> bool:
    return path.endswith(("/", "/.")) or path == "."


def member_name(path: str) -> str:
    """The name that a path's tar carries at its top: its last part."""
    return os.path.basename(os.path.normpath(path)) or "/"


def decide(source: str, source_kind: str, target: str, target_kind: str) -> Rule:
    """Where to extract. Raises `NotFound`, `Conflict`, `Invalid`."""
    content_only = source.endswith("/.") or source == "."
    if source_kind != Kind.FOLDER and wants_folder(source):
        raise Invalid(f"{source}: not a folder", hint="leave the slash at its end away")
    if target_kind == Kind.FOLDER:
        return Rule(target, "." if content_only else "")
    if target_kind == Kind.MISSING:
        return _into_missing(source_kind, target)
    if source_kind == Kind.FOLDER:
        raise Conflict(f"{target}: a folder can't be copied over a file")
    if wants_folder(target):
        raise Invalid(f"{target}: not a folder", hint="leave the slash at its end away")
    return Rule(_parent(target), member_name(target))


def _into_missing(source_kind: str, target: str) -> Rule:
    """A file takes the target's name; a folder becomes the target."""
    if source_kind != Kind.FOLDER and wants_folder(target):
        raise NotFound(f"{target}: no such folder", hint="make it first")
    return Rule(_parent(target), member_name(target))


def _parent(path: str) -> str:
    return os.path.dirname(os.path.normpath(path)) or "."
