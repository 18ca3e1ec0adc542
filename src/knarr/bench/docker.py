"""The peer docker: a dockerd of the measurement's own, in namespaces that end with it, asked through its API.

Its process tree, mounts and network are its own, so that nothing of it is left when its first process is
killed. Out of scope: figures (`start`, `inside`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

from knarr.bench import image
from knarr.bench.measure import Report, Subject, timed
from knarr.kernel import cgroups
from knarr.model.errors import Failed

_IMAGE: Final = "knarr-bench:busybox"
_PROGRAMS: Final = ("dockerd", "containerd", "runc", "iptables", "unshare")
_PATIENCE: Final = 30.0
_INSIDE: Final = 'mount -t tmpfs none /run && ip link set lo up && exec "$@"'
"""containerd keeps sockets in /run whatever its folders are"""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class Docker:
    """One connection to a dockerd that has the image of the figures."""

    def __init__(self, path: str) -> None:
        self._api = _Unix(path)

    def close(self) -> None:
        self._api.close()

    def ask(self, method: str, target: str, body: Any = None, kind: str = "application/json") -> bytes:
        """Raises `Failed` with dockerd's words, OSError when it is not there."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._api.request(method, target, data, {"Content-Type": kind})
        answer = self._api.getresponse()
        got = answer.read()
        if answer.status >= 400:
            raise Failed(f"dockerd: {method} {target}: {answer.status} {got.decode(errors='replace')[:200]}")
        return got

    def load(self) -> None:
        repository, tag = _IMAGE.split(":")
        target = f"/images/create?fromSrc=-&repo={repository}&tag={tag}"
        self.ask("POST", target, image.rootfs_tar(), "application/x-tar")

    def create(self, *command: str) -> str:
        wanted = {"Image": _IMAGE, "Cmd": command}
        return str(json.loads(self.ask("POST", "/containers/create", wanted))["Id"])

    def start(self, name: str) -> None:
        self.ask("POST", f"/containers/{name}/start")

    def remove(self, name: str) -> None:
        self.ask("DELETE", f"/containers/{name}?force=1")

    def life(self) -> None:
        """create, start, wait and remove `true`."""
        name = self.create("true")
        self.start(name)
        code = json.loads(self.ask("POST", f"/containers/{name}/wait"))["StatusCode"]
        self.remove(name)
        if code != 0:
            raise Failed(f"dockerd: true exited with {code}")

    def execute(self, name: str) -> None:
        """`true` inside, to its exit code."""
        wanted = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
        exec_id = json.loads(self.ask("POST", f"/containers/{name}/exec", wanted))["Id"]
        self.ask("POST", f"/exec/{exec_id}/start", {"Detach": False})
        code = json.loads(self.ask("GET", f"/exec/{exec_id}/json"))["ExitCode"]
        if code != 0:
            raise Failed(f"dockerd: true exited with {code} inside")


@contextlib.contextmanager
def private(report: Report) -> Iterator[Docker | None]:
    """A dockerd of this measurement's own; None, and a word why, where there can't be one."""
    missing = [name for name in _PROGRAMS if not shutil.which(name)]
    if missing:
        report.say(f"peer docker: {missing[0]} is not installed")
        yield None
        return
    group = f"knarr_bench_docker{os.getpid()}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kndk"))
        stack.callback(_remove_groups, group)
        log = stack.enter_context(open(f"{folder}/log", "w+b"))
        process = subprocess.Popen(_command(folder, group), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(_end, process)
        docker = _ready(process, f"{folder}/sock")
        if docker is None:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no word from it"]
            report.say(f"peer docker: dockerd can't be started here: {last[0][:300]}")
            yield None
            return
        stack.callback(docker.close)
        docker.load()
        yield docker


def _command(folder: str, group: str) -> tuple[str, ...]:
    spaces = ("unshare", "-n", "-m", "--propagation", "private", "-p", "--mount-proc", "--fork")
    daemon = ("dockerd", "--data-root", f"{folder}/root", "--exec-root", f"{folder}/exec")
    own = ("--pidfile", f"{folder}/pid", "-H", f"unix://{folder}/sock", "--cgroup-parent", f"/{group}")
    return (*spaces, "--kill-child", "sh", "-c", _INSIDE, "sh", *daemon, *own)


def _ready(process: subprocess.Popen[bytes], path: str) -> Docker | None:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        docker = Docker(path)
        try:
            docker.ask("GET", "/_ping")
        except (OSError, http.client.HTTPException):
            docker.close()
            time.sleep(0.1)
            continue
        return docker
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """The first process of its pid namespace is killed with `unshare`, and all others with that."""
    process.kill()
    process.wait(timeout=30)


def _remove_groups(group: str) -> None:
    with open("/proc/self/mounts", encoding="ascii", errors="replace") as file:
        mounted = [line.split(" ") for line in file]
    for place in {fields[1] for fields in mounted if fields[2] in ("cgroup", "cgroup2")}:
        cgroups.remove(f"{place}/{group}")


def starts(docker: Docker) -> Subject:
    return Subject(name="docker", sample=lambda: timed(docker.life))


@contextlib.contextmanager
def execs(docker: Docker) -> Iterator[Subject]:
    """In a container that runs meanwhile."""
    name = docker.create("sleep", "1000000")
    try:
        docker.start(name)
        yield Subject(name="docker", sample=lambda: timed(lambda: docker.execute(name)))
    finally:
        docker.remove(name)
