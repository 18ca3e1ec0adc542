"""Descriptors, paths, processes, group layouts: what needs no root."""

from __future__ import annotations

import errno
import os
import signal
import socket

import pytest

from knarr.kernel import caps, cgroups, facts, fds, limits, namespaces, paths, process
from knarr.model.workload import Resources


def test_sockets_with_long_paths(tmp_path):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = str(folder / "sock")
    for _ in range(2):
        # the second bind replaces the first one's file
        with fds.bind_unix(path) as server:
            assert os.stat(path).st_mode & 0o777 == 0o600
            server.listen()
            with fds.connect_unix(path) as client, server.accept()[0] as peer:
                fds.send_fds(client, b"hi", [0, 1])
                data, got = fds.recv_fds(peer, 100)
                assert (data, len(got)) == (b"hi", 2)
                assert not os.get_inheritable(got[0])
                fds.close_all(got)
    with pytest.raises(ConnectionRefusedError):
        fds.connect_unix(path)


def test_a_cut_packet_leaks_nothing():
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        before = len(os.listdir("/proc/self/fd"))
        fds.send_fds(one, b"x" * 100, [0])
        with pytest.raises(OSError) as caught:
            fds.recv_fds(two, 10)
        assert caught.value.errno == errno.EMSGSIZE
        assert len(os.listdir("/proc/self/fd")) == before


def test_exit_status_after_the_reaping():
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    pidfd = process.pidfd_open(pid)
    try:
        os.waitpid(pid, 0)
        assert process.pidfd_exit_status(pidfd) in (7 << 8, None)
        with pytest.raises(ProcessLookupError):
            process.pidfd_send_signal(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)


def test_start_time():
    assert process.start_time(os.getpid()) > 0


def test_paths_stay_in_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    os.symlink("../outside", root / "up")
    os.symlink("/", root / "slash")
    fd = os.open(root, os.O_PATH)
    try:
        made = paths.make_folders(fd, "/slash/a/../b")
        os.close(made)
        assert (root / "b").is_dir()
        with pytest.raises(OSError):
            paths.make_folders(fd, "up/x")
    finally:
        os.close(fd)
    assert os.listdir(tmp_path / "outside") == []


def test_capability_names():
    assert caps.mask(("CHOWN", "CHECKPOINT_RESTORE")) == 1 | 1 << 40
    assert caps.names(caps.mask(tuple(caps.NAMES))) == caps.NAMES
    assert caps.own()[0] >= 0


def test_namespace_names():
    assert namespaces.describe(namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNS) == "mount, pid"


MOUNTS = {
    "v1": "cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/memory cgroup rw,memory 0 0\n"
    "cgroup2 /cg/unified cgroup2 rw 0 0\n",
    "none": "tmpfs /tmp tmpfs rw 0 0\n",
    "odd": "x\n\ncgroup\n",
}


def test_layouts(tmp_path):
    def detect(name):
        path = tmp_path / name
        path.write_text(MOUNTS[name])
        return cgroups.detect(str(path))

    v1 = detect("v1")
    assert v1.version == 1
    assert v1.roots["cpu"] == v1.roots["cpuacct"] == "/cg/cpu,cpuacct"
    assert detect("none").version == detect("odd").version == 0
    assert len(cgroups.entry_files(v1, cgroups.group_paths(v1, "i", "w"))) == 2


def test_v2_is_found_by_its_controllers(tmp_path):
    root = tmp_path / "cg"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"cgroup2 {root} cgroup2 rw 0 0\n")
    layout = cgroups.detect(str(mounts))
    assert (layout.version, layout.swap) == (2, os.path.exists("/proc/swaps"))
    at = cgroups.group_paths(layout, "i", "w")
    assert (f"{at['unified']}/memory.swap.max", "5") in limits.files(layout, at, Resources(memory=5))
    assert (f"{root}/cgroup.subtree_control", "+pids") in cgroups.parent_files(layout, "i")


def test_in_a_scope_of_the_engines_own_v2_begins_there(tmp_path):
    root, path = tmp_path / "cg", "/machine.slice/knarr-0a1b2c.scope"
    (tmp_path / f"cg{path}").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / f"cg{path}/cgroup.controllers").write_text("memory pids\n")
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    mounts.write_text(f"cgroup2 {root} cgroup2 rw 0 0\n")
    for text, begin in (
        (f"0::{path}/engine\n", path),
        (f"0::{path}\n", ""),
        ("0::/system.slice/other.scope/engine\n", ""),
        ("0::/engine\n", ""),
        ("4:memory:/x\n", ""),
    ):
        own.write_text(text)
        layout = cgroups.detect(str(mounts), str(own))
        assert layout.roots == {"unified": f"{root}{begin}"}, text
        assert layout.controllers == (("memory", "pids") if begin else ("cpu", "io", "memory", "pids"))


def test_v2_stats(tmp_path):
    values = {
        "memory.current": "1000",
        "memory.max": "max",
        "memory.stat": "anon 5\ninactive_file 300\n",
        "cpu.stat": "usage_usec 7\n",
        "pids.current": "3",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n",
        "memory.events": "oom 1\noom_kill 1\n",
    }
    for name, text in values.items():
        (tmp_path / name).write_text(text)
    at = {"unified": str(tmp_path)}
    assert cgroups.stats(at) == cgroups.Usage(
        memory=700, memory_limit=0, cpu_ns=7000, pids=3, read_bytes=11, write_bytes=22
    )
    assert cgroups.oom_killed(at)
    assert cgroups.stats({"unified": "/none"}) == cgroups.Usage()
    assert not cgroups.oom_killed({"memory": "/none"})


def test_checks_have_remedies():
    found = facts.checks()
    assert {name for name, *_ in found} >= {"kernel", "control groups", "seccomp", "overlay"}
    assert all(bool(remedy) is not ok for _, ok, _, remedy in found)


def test_probe_is_quick_and_whole():
    host = facts.probe()
    assert host.kernel >= (4, 0)
    assert host.cgroups.version in (0, 1, 2)
