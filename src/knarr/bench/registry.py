"""A real registry on loopback for `bench images`: docker-registry, filled by skopeo from an OCI layout."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

from knarr.bench.floors import run_tool
from knarr.model.errors import Failed, NotFound

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotFound(f"{name} is not installed", hint=f"apt-get install {package}")
    return path


@contextlib.contextmanager
def serve(folder: str) -> Iterator[str]:
    """`127.0.0.1:PORT` of a registry that keeps its blobs below `folder`."""
    binary = tool("docker-registry", "docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = os.path.join(folder, "config.yml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(CONFIG.format(folder=os.path.join(folder, "store"), port=port))
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([binary, "serve", config], stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        _wait(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        if process.poll() is not None:
            raise Failed(f"docker-registry exited with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise Failed("docker-registry did not come up in 20 s")


def layout(root: str, image: dict[str, Any], folder: str) -> str:
    """An OCI layout of a stored image, with gzip layers, which every peer reads; its first layer's path."""
    blobs = os.path.join(root, "images", "default", "blobs", "sha256")
    target = os.path.join(folder, "blobs", "sha256")
    os.makedirs(target)
    with open(os.path.join(blobs, image["digest"].removeprefix("sha256:")), "rb") as file:
        manifest: dict[str, Any] = json.load(file)
    config = manifest["config"]["digest"].removeprefix("sha256:")
    os.link(os.path.join(blobs, config), os.path.join(target, config))
    for layer in manifest["layers"]:
        source = os.path.join(blobs, layer["digest"].removeprefix("sha256:"))
        digest, size = _as_gzip(source, layer["mediaType"], target)
        layer |= {"mediaType": GZIP_LAYER, "digest": digest, "size": size}
    manifest |= {"mediaType": MANIFEST}
    raw = json.dumps(manifest).encode()
    digest = hashlib.sha256(raw).hexdigest()
    with open(os.path.join(target, digest), "wb") as file:
        file.write(raw)
    entry = {"mediaType": MANIFEST, "digest": f"sha256:{digest}", "size": len(raw)}
    _write(folder, "index.json", {"schemaVersion": 2, "manifests": [entry]})
    _write(folder, "oci-layout", {"imageLayoutVersion": "1.0.0"})
    return os.path.join(target, manifest["layers"][0]["digest"].removeprefix("sha256:"))


def _as_gzip(source: str, kind: str, target: str) -> tuple[str, int]:
    """Digest and size of the layer as gzip, written below `target`."""
    scratch = os.path.join(target, "scratch")
    digest, size = hashlib.sha256(), 0
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    with open(source, "rb") as file, open(scratch, "wb") as out:
        if kind.endswith("gzip"):
            pieces: Iterator[bytes] = iter(lambda: file.read(1 << 20), b"")
        else:
            reader = zstandard.ZstdDecompressor().stream_reader(file) if kind.endswith("zstd") else file
            plain = iter(lambda: reader.read(1 << 20), b"")
            pieces = itertools.chain(map(packer.compress, plain), map(packer.flush, (zlib.Z_FINISH,)))
        for piece in pieces:
            digest.update(piece)
            size += out.write(piece)
    os.rename(scratch, os.path.join(target, digest.hexdigest()))
    return f"sha256:{digest.hexdigest()}", size


def _write(folder: str, name: str, value: object) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file)


def push(folder: str, reference: str) -> None:
    skopeo = tool("skopeo", "skopeo")
    run_tool(
        skopeo,
        "copy",
        "--insecure-policy",
        "--dest-tls-verify=false",
        f"oci:{folder}",
        f"docker://{reference}",
    )
