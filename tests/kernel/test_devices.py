"""The v2 device list. Power needed: root with a v2 tree (any controllers) and BPF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knarr.kernel import cgroups, devices

pytestmark = pytest.mark.root


def v2_root() -> str:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return fields[1]
    pytest.skip("no v2 control groups are mounted")


def opened(group: str, number: tuple[int, int], folder: str) -> str:
    """What a process in the group gets from opening a node that it makes itself."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            cgroups.write(f"{group}/cgroup.procs", "0")
            path = f"{folder}/{number[0]}-{number[1]}"
            os.mknod(path, 0o20600, os.makedev(*number))
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            os.write(write, b"ok")
        except OSError as error:
            os.write(write, os.strerror(error.errno or 0).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        return os.read(read, 100).decode()
    finally:
        os.close(read)
        os.waitpid(pid, 0)


def test_only_listed_devices_open(tmp_path):
    group = f"{v2_root()}/knarr_test_{os.getpid()}"
    cgroups.create(group)
    try:
        try:
            devices.attach_filter(group, ((1, 3), (136, -1)))
        except PermissionError:
            pytest.skip("this host forbids BPF")
        assert opened(group, (1, 3), str(tmp_path)) == "ok"
        assert opened(group, (1, 5), str(tmp_path)) == "Operation not permitted"
        assert opened(group, (1, 11), str(tmp_path)) == "Operation not permitted"
    finally:
        cgroups.remove(group)
