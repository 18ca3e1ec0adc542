"""A real registry on loopback for `bench images`: docker-registry, filled by skopeo from an OCI layout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from knarr.bench.floors import run_tool
from knarr.model.errors import Failed, NotFound

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


def layout(root: str, image: dict[str, Any], folder: str) -> dict[str, Any]:
    """An OCI layout of a stored image, blobs as links to the store's own; the manifest."""
    blobs = os.path.join(root, "images", "default", "blobs", "sha256")
    target = os.path.join(folder, "blobs", "sha256")
    os.makedirs(target)
    with open(os.path.join(blobs, image["digest"].removeprefix("sha256:")), "rb") as file:
        raw = file.read()
    manifest: dict[str, Any] = json.loads(raw)
    digests = [
        image["digest"],
        manifest["config"]["digest"],
        *(item["digest"] for item in manifest["layers"]),
    ]
    for digest in digests:
        name = digest.removeprefix("sha256:")
        os.link(os.path.join(blobs, name), os.path.join(target, name))
    kind = manifest.get("mediaType", "application/vnd.oci.image.manifest.v1+json")
    entry = {"mediaType": kind, "digest": image["digest"], "size": len(raw)}
    _write(folder, "index.json", {"schemaVersion": 2, "manifests": [entry]})
    _write(folder, "oci-layout", {"imageLayoutVersion": "1.0.0"})
    return manifest


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
