"""Layers and image sources for the store's tests, and what a folder looks like, field by field."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile

from knarr.images.source import ImageSource, Layer


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def opener(data: bytes, piece: int = 70_001):
    @contextlib.contextmanager
    def opened():
        yield (data[at : at + piece] for at in range(0, len(data), piece))

    return opened


def layer(
    tar: bytes, *, compress=lambda data: gzip.compress(data, 1, mtime=0), named=True, **changes
) -> Layer:
    blob = compress(tar)
    values = {
        "digest": digest(blob) if named else "",
        "media_type": "",
        "size": len(blob),
        "open": opener(blob),
    }
    return Layer(**{**values, **changes})


def source(
    tars: list[bytes], *, references=("docker.io/library/test:latest",), layers=None, **changes
) -> ImageSource:
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
    }
    values = {
        "manifest": b"",
        "manifest_digest": "",
        "config": json.dumps(config).encode(),
        "layers": tuple(layers if layers is not None else (layer(tar) for tar in tars)),
        "references": references,
    }
    return ImageSource(**{**values, **changes})


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mtime = 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields):
    return member(name, b"", tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def tar(*members, form=tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


def snapshot(root: str) -> dict[bytes, tuple]:
    """path → everything that a program could see of it."""
    found = {}
    inodes: dict[int, list[bytes]] = {}
    top = os.fsencode(root)
    paths = [top]
    for folder_path, folders, files in os.walk(top):
        paths += [os.path.join(folder_path, name) for name in folders + files]
    for path in paths:
        info = os.lstat(path)
        name = path[len(top) :] or b"/"
        shape = stat.S_IFMT(info.st_mode)
        content = None
        if shape == stat.S_IFREG:
            with open(path, "rb") as file:
                content = (info.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            inodes.setdefault(info.st_ino, []).append(name)
        elif shape == stat.S_IFLNK:
            content = os.readlink(path)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        links = info.st_nlink if shape != stat.S_IFDIR else 0
        found[name] = (
            oct(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            links,
            info.st_rdev,
            content,
            xattrs,
        )
    for names in inodes.values():
        for name in names:
            found[name] += (sorted(names),)
    return found


def footprint(store) -> dict[str, object]:
    """Everything that a leak would change."""
    root = store.root
    return {
        "files": sorted(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
            if not name.startswith("pool.db")
        ),
        "tail": os.path.getsize(os.path.join(root, "pool")),
        "data": _data(store.pool.fd),
        "rows": [
            store.records.one(f"SELECT count(*) FROM {table}")[0]
            for table in ("contents", "layers", "trees", "images")
        ],
        "refs": store.records.one("SELECT coalesce(sum(refs), 0) FROM contents")[0],
        "dirty": store.records.flag("dirty"),
        "in use": len(store.pool._in_use),
    }


def _data(fd: int) -> list[tuple[int, int]]:
    """The ranges that take disk; not st_blocks, which counts the file system's own blocks as well."""
    ranges, at, end = [], 0, os.fstat(fd).st_size
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


_libc = ctypes.CDLL(None, use_errno=True)


def mount_tree(tree: str, pool: str, target: str, options: str = "") -> None:
    if _libc.mount(
        tree.encode(), target.encode(), b"erofs", ctypes.c_ulong(1), f"device={pool}{options}".encode()
    ):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def mounted(image, target: str, options: str = ""):
    mount_tree(image.rootfs.tree, image.rootfs.pool, target, options)
    try:
        yield target
    finally:
        unmount(target)


@contextlib.contextmanager
def mounted_rootfs(rootfs: dict, target: str):
    """The same by what the API tells of an image."""
    mount_tree(rootfs["tree"], rootfs["pool"], target)
    try:
        yield target
    finally:
        unmount(target)


def unmount(target: str) -> None:
    _libc.umount2(target.encode(), 2)
