"""A real registry (Debian's docker-registry) on loopback, and the tools to fill and secure it.

`with docker_registry() as registry:` gives its `.host` (`127.0.0.1:PORT`). Stopped and removed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "/usr/bin/docker-registry"
USER, PASSWORD = "olaf", "tide-and-wind"
# bcrypt of PASSWORD, cost 4: the only form docker-registry reads
_HTPASSWD_COST = "04"


@dataclass
class RegistryServer:
    host: str
    folder: str
    scheme: str = "http"
    certificate: str = ""
    log: str = field(default="")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def available() -> str:
    """Empty, or why the real registry can't run here."""
    for program in (PROGRAM, "/usr/bin/skopeo"):
        if not os.access(program, os.X_OK):
            return f"{program} is not installed"
    return ""


@contextlib.contextmanager
def docker_registry(
    *, auth: bool = False, tls: bool = False, token_realm: str = "", token_bundle: str = ""
) -> Iterator[RegistryServer]:
    folder = tempfile.mkdtemp(prefix="knarr-registry-")
    try:
        server = RegistryServer(host=f"127.0.0.1:{free_port()}", folder=folder, log=f"{folder}/log")
        config = _config(server, auth=auth, tls=tls)
        if token_realm:
            config["auth"] = {
                "token": {
                    "realm": token_realm,
                    "service": "test",
                    "issuer": "test",
                    "rootcertbundle": token_bundle,
                }
            }
        with open(f"{folder}/config.yml", "w") as file:
            json.dump(config, file)  # JSON is YAML
        with open(server.log, "wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "serve", f"{folder}/config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(folder)


def _config(server: RegistryServer, *, auth: bool, tls: bool) -> dict:
    config: dict = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": f"{server.folder}/data"}},
        "http": {"addr": server.host},
    }
    if auth:
        with open(f"{server.folder}/htpasswd", "w") as file:
            file.write(f"{USER}:{bcrypt(PASSWORD)}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": f"{server.folder}/htpasswd"}}
    if tls:
        server.scheme = "https"
        server.certificate, key = make_certificate(server.folder)
        config["http"]["tls"] = {"certificate": server.certificate, "key": key}
    return config


def _wait(server: RegistryServer, process: subprocess.Popen) -> None:
    host, _, port = server.host.partition(":")
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    with open(server.log) as file:
        raise RuntimeError(f"docker-registry did not start: {file.read()[-2000:]}")


def bcrypt(password: str) -> str:
    """By perl's crypt(3), which every Debian has."""
    script = "print crypt($ARGV[0], '$2y$" + _HTPASSWD_COST + "$abcdefghijklmnopqrstuu')"
    return subprocess.run(
        ["/usr/bin/perl", "-e", script, password], capture_output=True, text=True, check=True
    ).stdout


def make_certificate(folder: str, name: str = "server", extra: str = "") -> tuple[str, str]:
    """A self-made certificate for 127.0.0.1 and localhost: (certificate, key) as PEM files."""
    certificate, key = f"{folder}/{name}.pem", f"{folder}/{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
    ]
    command += ["-addext", f"subjectAltName=IP:127.0.0.1,DNS:localhost{extra}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def push(
    source: str, server: RegistryServer, name: str, *, credentials: str = "", extra: tuple[str, ...] = ()
) -> None:
    """`skopeo copy SOURCE docker://HOST/NAME`, such as source `oci:DIR:TAG` or `docker-archive:FILE`."""
    command = ["/usr/bin/skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", *extra]
    if credentials:
        command += ["--dest-creds", credentials]
    subprocess.run(
        [*command, source, f"docker://{server.host}/{name}"], check=True, capture_output=True, timeout=120
    )


def push_blobs(server: RegistryServer, name: str, target: str, blobs: dict[str, bytes], entry: dict) -> None:
    """Push what `images.oci_blobs` made, byte by byte as it is (skopeo would compress plain layers)."""
    base = f"http://{server.host}/v2/{name}"
    for digest, data in blobs.items():
        if digest == entry["digest"]:
            continue
        with urllib.request.urlopen(
            urllib.request.Request(f"{base}/blobs/uploads/", method="POST", data=b"")
        ) as answer:
            location = answer.headers["Location"]
        put(f"{location}{'&' if '?' in location else '?'}digest={digest}", data, "application/octet-stream")
    put(f"{base}/manifests/{target}", blobs[entry["digest"]], entry["mediaType"])


def put(url: str, data: bytes, kind: str) -> None:
    ask = urllib.request.Request(url, data=data, method="PUT", headers={"Content-Type": kind})
    with urllib.request.urlopen(ask, timeout=10) as answer:
        assert answer.status == 201
