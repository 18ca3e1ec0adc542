"""Small images for tests: layers of tar members, docker-save archives, OCI layouts, a working busybox.

`busybox_archive(path, cmd=[…])` writes a `docker save` archive with /bin/sh, /etc/passwd and /tmp that every
wall can run. The builders below it make any image, also broken ones, member by member.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUSYBOX = "/bin/busybox"
PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
alice:x:1000:1000:Alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
tty:x:5:
staff:x:50:alice
alice:x:1000:
nogroup:x:65534:
"""
MTIME = 1_700_000_000


@dataclass(frozen=True)
class Member:
    """One tar member; `kind` is tarfile's type."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    xattrs: dict[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)
    mtime: float = MTIME


def folder(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Member:
    return Member(name, mode=mode, uid=uid, gid=gid, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    return Member(name, mode=0o777, kind=tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str) -> Member:
    return Member(name, kind=tarfile.LNKTYPE, link=target)


def tar_bytes(members: Iterable[Member], layout: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.mode = member.kind, member.link, member.mode
            info.uid, info.gid, info.mtime = member.uid, member.gid, member.mtime
            info.devmajor, info.devminor = member.device
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in member.xattrs.items()}
            info.size = len(member.data)
            archive.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config_bytes(
    layers: Sequence[bytes],
    *,
    cmd: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
    user: str = "",
    workdir: str = "",
    labels: dict[str, str] | None = None,
    architecture: str = "amd64",
    **more: object,
) -> bytes:
    """The config of an image of these uncompressed layers; `more` goes into its `config` object."""
    inner: dict[str, object] = {
        "Env": list(env),
        "Cmd": list(cmd) or None,
        "Entrypoint": list(entrypoint) or None,
    }
    inner.update({"User": user, "WorkingDir": workdir, "Labels": labels}, **more)
    body = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture,
        "os": "linux",
        "config": {key: value for key, value in inner.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [{"created_by": "test"} for _ in layers],
    }
    return json.dumps(body).encode()


def docker_archive(
    path: str, layers: Sequence[bytes], config: bytes, tags: Sequence[str] = ("test:latest",)
) -> str:
    """What `docker save` writes: manifest.json, the config, `N/layer.tar` members."""
    with open(path, "wb") as file:
        file.write(docker_bytes(layers, config, tags))
    return path


def docker_bytes(layers: Sequence[bytes], config: bytes, tags: Sequence[str]) -> bytes:
    name = sha256(config)[7:] + ".json"
    files = [Member(f"{number}/layer.tar", layer) for number, layer in enumerate(layers)]
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": [file.name for file in files]}]
    files += [Member(name, config), Member("manifest.json", json.dumps(manifest).encode())]
    return tar_bytes(files)


def compress(layer: bytes, how: str) -> tuple[bytes, str]:
    """(blob, media type) of an uncompressed layer; `how` is gzip, zstd or tar."""
    base = "application/vnd.oci.image.layer.v1.tar"
    if how == "gzip":
        return gzip.compress(layer, 6, mtime=0), f"{base}+gzip"
    if how == "zstd":
        import zstandard

        return zstandard.compress(layer, 3), f"{base}+zstd"
    return layer, base


def oci_blobs(layers: Sequence[bytes], config: bytes, how: str = "gzip") -> tuple[dict[str, bytes], dict]:
    """All blobs by digest, and the descriptor of the manifest among them."""
    blobs = {sha256(config): config}
    descriptors = []
    for layer in layers:
        blob, media_type = compress(layer, how)
        blobs[sha256(blob)] = blob
        descriptors.append({"mediaType": media_type, "digest": sha256(blob), "size": len(blob)})
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config),
            "size": len(config),
        },
        "layers": descriptors,
    }
    data = json.dumps(manifest).encode()
    blobs[sha256(data)] = data
    return blobs, {"mediaType": manifest["mediaType"], "digest": sha256(data), "size": len(data)}


def oci_members(blobs: dict[str, bytes], entries: Sequence[dict]) -> list[Member]:
    index = {"schemaVersion": 2, "manifests": list(entries)}
    return [
        Member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        Member("index.json", json.dumps(index).encode()),
        *(Member("blobs/" + digest.replace(":", "/"), data) for digest, data in blobs.items()),
    ]


def oci_layout(
    path: str, layers: Sequence[bytes], config: bytes, *, name: str = "latest", how: str = "gzip"
) -> str:
    """An OCI layout folder (`skopeo copy oci:PATH:NAME …` reads it)."""
    blobs, entry = oci_blobs(layers, config, how)
    entry = {**entry, "annotations": {"org.opencontainers.image.ref.name": name}}
    for member in oci_members(blobs, [entry]):
        target = os.path.join(path, member.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(member.data)
    return path


def busybox_members(extra: Iterable[Member] = ()) -> list[Member]:
    """A root file system that every wall can run: busybox with its links, users, /tmp."""
    with open(BUSYBOX, "rb") as file:
        program = file.read()
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout
    applets = [name for name in listed.split() if name != "busybox" and "/" not in name]
    folders = [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "usr",
        "usr/bin",
        "var",
    ]
    return [
        *(folder(name, 0o700 if name == "root" else 0o755) for name in folders),
        folder("tmp", 0o1777),
        folder("home/alice", 0o755, 1000, 1000),
        Member("bin/busybox", program, 0o755),
        *(symlink(f"bin/{name}", "busybox") for name in applets),
        symlink("usr/bin/env", "../../bin/busybox"),
        Member("etc/passwd", PASSWD.encode()),
        Member("etc/group", GROUP.encode()),
        Member("etc/hostname", b""),
        Member("etc/hosts", b""),
        Member("etc/resolv.conf", b""),
        *extra,
    ]


def busybox_archive(
    path: str,
    *,
    cmd: Sequence[str] = ("sh",),
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
    user: str = "",
    workdir: str = "",
    entrypoint: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    extra_files: dict[str, bytes | str] | None = None,
    extra_members: Iterable[Member] = (),
    layers: Sequence[Iterable[Member]] = (),
    tag: str = "knarr-test:latest",
    **more: object,
) -> str:
    """A `docker save` archive of a busybox image; returns `path`.

    `extra_files` (path → content, mode 0755 if it starts with `#!`) make a layer of their own on top of the base;
    `layers` are further ones. `more` goes into the config, such as `Volumes={"/data": {}}`, `StopSignal="SIGINT"`.
    """
    stack = [tar_bytes(busybox_members(extra_members))]
    if extra_files:
        stack.append(tar_bytes(_file(name, content) for name, content in extra_files.items()))
    stack += [tar_bytes(members) for members in layers]
    config = config_bytes(
        stack, cmd=cmd, env=env, user=user, workdir=workdir, entrypoint=entrypoint, labels=labels, **more
    )
    return docker_archive(path, stack, config, (tag,))


def _file(name: str, content: bytes | str) -> Member:
    data = content.encode() if isinstance(content, str) else content
    return Member(name.lstrip("/"), data, 0o755 if data.startswith(b"#!") else 0o644)
