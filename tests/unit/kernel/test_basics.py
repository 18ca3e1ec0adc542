"""Descriptors, paths, processes, group layouts: what needs no root."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.kernel import caps, cgroups, facts, fds, limits, namespaces, paths, process
from knarr.kernel.steps_user import resolve
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


def test_execute_gives_exactly_the_declared_descriptors(tmp_path):
    code = """
import os, socket, sys
sys.path[:0] = [sys.argv[1]]
from knarr.kernel import process
a, b = socket.socketpair()
r, w = os.pipe()
junk = [os.open("/dev/null", os.O_RDWR) for _ in range(20)]
for fd in junk: os.set_inheritable(fd, True)
try:
    process.execute(("sh", "-c", "ls -l /proc/self/fd | cut -d' ' -f9-"), ("PATH=/bin:/usr/bin",), {0: 0, 1: 1, 2: 2, 5: 1}, b)
except OSError as error:
    print(error)
"""
    source = os.path.dirname(os.path.dirname(os.path.dirname(facts.__file__)))
    run = subprocess.run(
        [sys.executable, "-IS", "-c", code, source],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    numbers = {line.split()[-3] for line in run.stdout.splitlines() if "->" in line}
    # 3 is the listing's own
    assert numbers == {"0", "1", "2", "3", "5"}


def test_a_failed_exec_can_be_told():
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = process.spawn()
    if pid == 0:
        try:
            process.execute(("/no/such",), (), {}, two)
        except OSError as error:
            two.send(str(error.errno).encode())
        finally:
            os._exit(0)
    two.close()
    with one:
        assert one.recv(100) == b"2"
        assert one.recv(100) == b""
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("name", "number"),
    [("", errno.ENOENT), ("nosuch", errno.ENOENT), ("/etc", errno.EACCES), ("/etc/passwd", errno.EACCES)],
)
def test_programs_not_found(name, number):
    with pytest.raises(OSError) as caught:
        process.find_program(name, "/bin:/usr/bin")
    assert caught.value.errno == number


def test_program_by_search():
    assert process.find_program("sh", "/nowhere:/bin") == "/bin/sh"
    with pytest.raises(OSError):
        process.find_program("/proc/self/exe", "/bin")


def test_exit_status_after_the_reaping():
    pid = process.spawn()
    if pid == 0:
        os._exit(7)
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
        os.close(paths.make_file(fd, "c/d/file"))
        assert (root / "c" / "d" / "file").is_file()
        (root / "big").write_bytes(b"x" * 100)
        with pytest.raises(OSError) as caught:
            paths.read_small(fd, "big", 99)
        assert caught.value.errno == errno.EFBIG
        os.mkfifo(root / "fifo")
        with pytest.raises(OSError, match="not a regular file"):
            paths.read_small(fd, "fifo", 99)
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


PASSWD = [
    line.split(":")
    for line in (
        "root:x:0:0:r:/root:/bin/sh",
        "a:x:5:6:A:/a:/bin/sh",
        "bad:x:y:z:",
        "big:x:99999999999:1:::",
        "5x:x:9:9::/:",
    )
]
GROUP = [
    line.split(":")
    for line in (
        "root:x:0:",
        "a:x:6:",
        "g:x:20:a,b",
        "h:x:21:b",
        "short",
        "evil:x:zz:a",
        "huge:x:99999999999:a",
    )
]


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", (), (0, 0, (), "/root")),
        ("a", (), (5, 6, (20,), "/a")),
        ("5", (), (5, 6, (20,), "/a")),
        ("5:h", (), (5, 21, (), "/a")),
        ("5x", (), (9, 9, (), "/")),
        ("77", ("g",), (77, 0, (20,), "/")),
        (":h", (), (0, 21, (), "/root")),
    ],
)
def test_resolve(user, extra, expected):
    assert resolve(PASSWD, GROUP, user, extra) == expected


@given(st.text(max_size=12))
def test_resolve_never_guesses(user):
    """A user that is neither a plain number nor a name of the file is an error, never uid 0."""
    try:
        uid, *_ = resolve(PASSWD, GROUP, user, ())
    except OSError:
        return
    name = user.partition(":")[0]
    assert uid != 0 or name in ("", "root") or (name.isascii() and name.isdigit() and int(name) == 0)


def test_checks_have_remedies():
    found = facts.checks()
    assert {name for name, *_ in found} >= {"kernel", "control groups", "seccomp", "overlay"}
    assert all(bool(remedy) is not ok for _, ok, _, remedy in found)


def test_probe_is_quick_and_whole():
    host = facts.probe()
    assert host.kernel >= (4, 0)
    assert host.cgroups.version in (0, 1, 2)
