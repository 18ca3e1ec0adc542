"""Attacks on a running instance by its images and workloads; docs/security.md says which class each case is of."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess

import pytest

from conformance.harness import Instance, eventually
from support.images import Member, busybox_archive, folder, symlink

pytestmark = pytest.mark.root
ESCAPE = "\x1b"
SCRIPT = b"#!/proc/self/exe\n"
NODES = (
    "b 8 0",
    "b 7 0",
    "b 254 0",
    "b 253 0",
    "b 252 0",
    "c 1 1",
    "c 7 0",
    "c 10 229",
    "c 10 200",
    "c 250 1",
)


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def load(instance, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("images") / "image.tar")

    def make(name, **fields):
        busybox_archive(path, tag=f"{name}:1", **fields)
        return instance.knarr("load", "-i", path)

    assert make("base").code == 0
    return make


@pytest.fixture
def box(instance, load):
    """A running container of the base image."""
    name = instance.knarr("run", "-d", "base:1", "sleep", "1000", check=True).out.strip()
    yield name
    instance.knarr("rm", "-f", name)


def run(instance, *words):
    return instance.knarr("run", "--rm", "--network", "none", *words)


def test_the_interpreter_can_not_be_reached(instance, load, box):
    members = [symlink("bin/evil", "/proc/self/exe"), Member("bin/script", SCRIPT, 0o755)]
    load("exe", extra_members=members)
    for command in ("/proc/self/exe", "evil", "script"):
        for options in ((), ("--init",)):
            assert run(instance, *options, "exe:1", command, "-c", "print('inside')").code in (126, 127)
    watch = (
        "while :; do for p in /proc/[0-9]*; do (: >> $p/exe) 2>/dev/null && echo opened $p; "
        "ls $p/fd/ $p/root/work $p/cwd/work 2>/dev/null | grep -q src && echo host $p; done; done"
    )
    name = instance.knarr("run", "-d", "base:1", "sh", "-c", watch, check=True).out.strip()
    try:
        for _ in range(20):
            assert instance.knarr("exec", name, "true").code == 0
        assert instance.knarr("logs", name).out == ""
    finally:
        instance.knarr("rm", "-f", name)


def test_no_descriptor_and_no_folder_of_the_host_leaks(instance, load, box):
    look = ("ls", "-l", "/proc/self/fd")
    for result in (
        run(instance, "base:1", *look),
        run(instance, "--init", "base:1", *look),
        instance.knarr("exec", box, *look),
    ):
        numbers = [line.split(" -> ")[0].split()[-1] for line in result.lines if " -> " in line]
        assert set(numbers) <= {"0", "1", "2", "3"}, result.out  # 3 is ls's own
    for number in range(3, 12):
        assert instance.knarr("exec", "-w", f"/proc/self/fd/{number}", box, "pwd").code != 0
        assert run(instance, "-w", f"/proc/self/fd/{number}", "base:1", "pwd").code != 0


@pytest.mark.parametrize("place", ["proc", "sys", "dev"])
def test_kernel_folders_as_links_are_refused(instance, load, place):
    link = [Member(f".wh.{place}"), symlink(place, "/tmp"), folder("tmp", 0o1777)]
    load(f"link{place}", layers=[[link[0]], link[1:]])
    result = run(instance, f"link{place}:1", "ls", "/tmp")
    assert result.code == 125
    assert "plain folder" in result.err


def test_links_that_move_lead_nowhere_outside(instance, load, tmp_path):
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    shared.mkdir()
    outside.mkdir()
    storm = f"cd /s; while :; do mkdir x; mv x z; ln -s {outside} x; rm -rf x z; done 2>/dev/null"
    volume = ("-v", f"{shared}:/s")
    name = instance.knarr("run", "-d", *volume, "base:1", "sh", "-c", storm, check=True).out.strip()
    try:
        before = instance.knarr("exec", name, "mount").out
        for _ in range(15):
            run(instance, *volume, "--tmpfs", "/s/x/y", "base:1", "touch", "/s/x/y/mark")
            instance.knarr("cp", "/etc/hostname", f"{name}:/s/x/mark")
        assert list(outside.iterdir()) == []
        assert instance.knarr("exec", name, "mount").out == before
    finally:
        instance.knarr("rm", "-f", name)


def _open_nodes(wall):
    makes = "; ".join(f"mknod /tmp/n{at} {node}" for at, node in enumerate(NODES))
    return (
        "--isolation",
        wall,
        "base:1",
        "sh",
        "-c",
        f"{makes}; for n in /tmp/n*; do (: < $n) && echo $n; done",
    )


def test_host_devices_can_be_made_but_not_opened(instance, load):
    assert run(instance, *_open_nodes("container")).out == ""


@pytest.mark.vm
def test_guest_devices_can_be_made_but_not_opened(instance, load):
    result = run(instance, *_open_nodes("microvm"))
    assert (result.out, result.err.count("mknod")) == ("", 0)


@pytest.mark.parametrize("user", ["0x0", "+0", "-1", "\u0660", "4294967296", " 0", "0:0x0"])
def test_users_of_images_are_names_or_plain_numbers(instance, load, user):
    load("user", user=user, cmd=["id"])
    result = run(instance, "user:1")
    assert (result.code, result.out) == (125, "")


def test_a_user_named_like_a_number_is_not_that_number(instance, load):
    load("numbered", layers=[[Member("etc/passwd", b"1000:x:0:0::/:/bin/sh\n")]])
    assert "uid=1000" in run(instance, "--user", "1000", "numbered:1", "id").out


@pytest.mark.parametrize(
    "fields", [{"labels": {"a": "\ud800"}}, {"cmd": ["\udc80"]}, {"env": ["A=\ud800"]}, {"user": "\ud800"}]
)
def test_a_config_that_nobody_can_print_is_refused(instance, load, fields):
    result = load("half", **fields)
    assert result.code != 0
    assert "plain text" in result.err
    assert instance.knarr("image", "ls").code == 0


def test_an_image_can_not_keep_itself_from_being_stopped(instance, load):
    load("signal", StopSignal="9" * 5000)
    name = instance.knarr("run", "-d", "signal:1", "sleep", "1000", check=True).out.strip()
    assert instance.knarr("stop", "-t", "1", name).code == 0
    assert instance.knarr("rm", name).code == 0


def test_control_sockets_are_out_of_reach_from_the_hosts_network(instance, load):
    words = f"cat /proc/net/unix; ls {instance.run_folder}"
    result = instance.knarr("run", "--rm", "--network", "host", "base:1", "sh", "-c", words)
    assert not [line for line in result.lines if "knarr" in line and "@" in line]
    assert result.code != 0  # RUN is not there
    for name in os.listdir(instance.run_folder):
        mode = os.stat(os.path.join(instance.run_folder, name)).st_mode
        assert not stat.S_ISSOCK(mode) or not mode & 0o007, name


def test_what_images_say_drives_no_terminal(instance, load):
    load("escape", labels={f"{ESCAPE}[31m": f"{ESCAPE}]0;x\x07"}, cmd=["sh", "-c", f"echo {ESCAPE}[2J"])
    name = instance.knarr("create", "escape:1", check=True).out.strip()
    try:
        for words in (
            ("ps", "-a"),
            ("ps", "-a", "--no-trunc"),
            ("inspect", name),
            ("image", "inspect", "escape:1"),
        ):
            assert ESCAPE not in instance.knarr(*words).out
        assert ESCAPE not in instance.knarr("run", "--rm", "base:1", f"{ESCAPE}[31m").err
        assert ESCAPE not in instance.knarr("pull", f"a{ESCAPE}").err
    finally:
        instance.knarr("rm", "-f", name)


def test_a_fork_bomb_has_an_end(instance, load, box):
    found = instance.knarr(
        "exec", box, "sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max"
    )
    assert found.out.strip() == "4096"


def _ask(instance, head: str, body: bytes = b""):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(os.path.join(instance.run_folder, "knarr.sock"))
        sock.sendall(f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = sock.recv(65536).decode()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("POST /v1/workloads HTTP/1.1", b"[" * 100_000, 400),
        ("POST /v1/workloads HTTP/1.1", b'{"labels":' * 100 + b"1" + b"}" * 100, 400),
        ("POST /v1/workloads HTTP/1.1", b'{"image":"base:1","surprise":1}', 400),
        ("POST /v1/workloads HTTP/1.1", b'{"image":1e999}', 400),
        ("PATCH /v1/workloads HTTP/1.1", b"", 405),
        ("GET /v1/workloads/..%2f..%2fetc%2fpasswd HTTP/1.1", b"", 404),
        ("GET /v1/workloads/%00 HTTP/1.1", b"", 404),
        ("GET /v1/workloads?surprise=1 HTTP/1.1", b"", 400),
    ],
)
def test_malformed_requests_get_an_error_in_our_form(instance, head, body, status):
    code, text = _ask(instance, head, body)
    assert code == status, text
    assert json.loads(text)["message"]


def test_an_oversize_body_is_refused_unread(instance):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(os.path.join(instance.run_folder, "knarr.sock"))
        sock.sendall(b"POST /v1/workloads HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{")
        assert b" 400 " in sock.recv(65536)


def test_the_daemon_trusts_no_path_of_its_starter(instance):
    def environment():
        pid = json.loads(instance.knarr("daemon", "status", "--format", "json").out)["pid"]
        with open(f"/proc/{pid}/environ", "rb") as file:
            return dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)

    eventually(lambda: environment().get(b"PATH"), what="the daemon's environment")
    found = environment()
    assert found[b"PATH"].startswith(b"/usr/local/sbin:")
    assert not [key for key in found if key.startswith((b"LD_", b"PYTHON"))]


def test_a_run_folder_that_others_may_write_to_is_refused(tmp_path):
    from conformance.harness import KNARR

    run_folder = tmp_path / "run"
    run_folder.mkdir()
    run_folder.chmod(0o777)
    words = [str(KNARR), "--root", str(tmp_path / "root"), "--run", str(run_folder), "daemon", "start"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "others may write" in done.stderr
    assert list(run_folder.iterdir()) == []


@pytest.mark.vm
def test_a_guest_that_says_it_ended_and_runs_on_is_killed(instance, load):
    name = instance.knarr(
        "run", "-d", "--isolation", "microvm", "base:1", "sleep", "1000", check=True
    ).out.strip()
    found = json.loads(instance.knarr("inspect", name).out)[0]
    with open(os.path.join(found["folder"], "vm-status"), "a", encoding="ascii") as file:
        file.write("exit 0\n")
    os.kill(found["pid"], signal.SIGSTOP)  # as an agent that answers nothing any more
    assert instance.knarr("rm", "-f", name).code == 0


@pytest.mark.vm
def test_a_guest_that_floods_its_console_fills_no_disk(instance, load):
    words = ("run", "-d", "--isolation", "microvm", "--network", "none", "base:1", "sleep", "1000")
    name = instance.knarr(*words, check=True).out.strip()
    folder = json.loads(instance.knarr("inspect", name).out)[0]["folder"]
    names = ("console.log", "qemu.log", "vm-status")
    try:
        for file_name in names:
            with open(os.path.join(folder, file_name), "ab") as file:  # as its QEMU would, on its word
                file.write(b"x" * (8 << 20))
        sizes = lambda: [os.path.getsize(os.path.join(folder, file_name)) for file_name in names]  # noqa: E731
        eventually(lambda: max(sizes()) <= 1 << 20, what="files that are cut")
        assert instance.knarr("exec", name, "echo", "alive").out == "alive\n"
    finally:
        instance.knarr("rm", "-f", name)
