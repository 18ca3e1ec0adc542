"""Attacks that user namespaces and joined ones open; docs/security.md says which class each case is of."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import stat
import time

import pytest

import knarr
from conformance.harness import Instance, eventually
from support.images import Member, busybox_archive

pytestmark = pytest.mark.root
EVERYTHING = (
    "--cap-add",
    "ALL",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "systempaths=unconfined",
)
CHARACTER = b"3"
SUID_TOOL = pathlib.Path(knarr.__file__).parent / "native-bin" / "init"
"""static, and unlike busybox it keeps what a set-user-id bit gives"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    path = str(tmp_path_factory.mktemp("images") / "image.tar")
    node = Member("evil", kind=CHARACTER, device=(1, 1), mode=0o666)
    tool = Member("bin/tool", SUID_TOOL.read_bytes(), 0o4755)
    busybox_archive(path, tag="base:1", extra_members=[node, tool])
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        made.knarr("load", "-i", path, check=True)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def box(instance, *words, command=("sleep", "1000")):
    name = instance.knarr("run", "-d", *words, "base:1", *command, check=True).out.strip()
    try:
        yield name
    finally:
        instance.knarr("rm", "-f", name)


def run(instance, *words):
    return instance.knarr("run", "--rm", *words)


def outside(instance, name):
    """(pid, first id on the host) of its first process."""
    pid = json.loads(instance.knarr("inspect", name, check=True).out)[0]["pid"]
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
        return pid, int(file.readline().split()[1])


def owner(pid, field="Uid"):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(line.split()[1:] for line in file if line.startswith(f"{field}:"))


def test_root_of_the_hardened_profile_is_nobody_on_the_host(instance, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o777)
    os.chmod(tmp_path, 0o755)
    words = ("--security-profile", "hardened", "-v", f"{shared}:/s")
    with box(
        instance,
        *words,
        command=("sh", "-c", "touch /s/f; cp /bin/tool /s/suid; chmod 4755 /s/suid; sleep 1000"),
    ) as name:
        eventually(lambda: (shared / "suid").exists() and (shared / "suid").stat().st_mode & stat.S_ISUID)
        pid, first = outside(instance, name)
        assert first > 1 << 24
        assert set(owner(pid)) == {str(first)}
        # what its root leaves behind gives nobody the host's root
        assert {(shared / item).stat().st_uid for item in ("f", "suid")} == {first}
        assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        assert int(owner(pid, "CapBnd")[0], 16).bit_count() == 11
        assert owner(pid, "NoNewPrivs") == ["1"]


def test_devices_are_out_of_reach(instance):
    script = (
        "for n in 'c 1 1' 'b 254 0' 'c 5 1'; do mknod /tmp/n $n 2>/dev/null && echo made $n; done;"
        " (head -c 1 /evil >/dev/null) 2>/dev/null && echo opened; echo end"
    )
    assert run(instance, "--userns", "auto", *EVERYTHING, "base:1", "sh", "-c", script).lines == ["end"]


def test_set_user_id_files_give_the_inner_root_only(instance, tmp_path):
    os.chmod(tmp_path, 0o755)
    theirs = tmp_path / "theirs"
    shutil.copy(SUID_TOOL, theirs)
    os.chmod(theirs, 0o4755)
    words = ("--userns", "auto", "-u", "alice", "-v", f"{tmp_path}:/s")
    with box(instance, *words, command=("/bin/tool", "/bin/sleep", "sleep", "1000")) as name:
        pid, first = outside(instance, name)
        assert owner(pid)[1] == str(first), "the image's file: root inside"
    with box(instance, *words, command=("/s/theirs", "/bin/sleep", "sleep", "1000")) as name:
        pid, first = outside(instance, name)
        # the host's root does not exist inside: its bit means nothing
        assert set(owner(pid)) == {str(first + 1000)}


def test_a_volume_with_mapped_ids_is_nobodys_on_the_host(instance):
    script = "cp /bin/tool /v/suid; chmod 4755 /v/suid"
    assert run(instance, "--userns", "auto", "-v", "trap:/v", "base:1", "sh", "-c", script).code == 0
    found = json.loads(instance.knarr("volume", "inspect", "trap").out)[0]["mountpoint"]
    assert os.stat(f"{found}/suid").st_uid == 0
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresuid(1000, 1000, 1000)
        with contextlib.suppress(OSError):
            os.stat(f"{found}/suid")
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "a user of the host reaches it"
    instance.knarr("volume", "rm", "trap")


def test_all_privileges_end_at_the_namespace(instance):
    attempts = (
        "echo x >/proc/sys/kernel/core_pattern",
        "echo 1 >/proc/sys/vm/drop_caches",
        "echo h >/proc/sysrq-trigger",
        "head -c 1 /proc/kcore",
        "mount -o remount,rw /sys && echo 1 >/sys/kernel/profiling",
        "mount -o remount,rw /sys/fs/cgroup/memory && echo x >/sys/fs/cgroup/memory/release_agent",
        "mount -o remount,rw /sys/fs/cgroup/devices && echo a >/sys/fs/cgroup/devices/devices.allow",
        "mount -t cgroup -o devices none /mnt && echo a >/mnt/devices.allow",
        "mount -t ext4 /dev/vda /mnt",
        "umount /proc",
        "date -s 2001-01-01; [ $(date +%Y) = 2001 ]",
        "hwclock -w",
        "swapoff -a && false",
        "insmod /bin/tool",
        "nice -n -20 true",
        "chroot /proc/1/root/../../../../host",
        "nsenter -t 1 -m -- ls /work",
    )
    script = "mkdir -p /mnt; " + "; ".join(
        f"(({text}) >/dev/null 2>&1) && echo 'done: {text}'" for text in attempts
    )
    expected = ["end"]
    with box(instance, "--userns", "auto", *EVERYTHING) as name:
        for result in (
            instance.knarr("exec", name, "sh", "-c", f"{script}; echo end"),
            instance.knarr("exec", "--privileged", name, "sh", "-c", f"{script}; echo end"),
        ):
            assert result.lines == expected, result


def test_an_exec_with_all_capabilities_has_them_inside_only(instance):
    with box(instance, "--security-profile", "hardened") as name:
        _, first = outside(instance, name)
        with contextlib.ExitStack() as stack:
            process = instance.popen("exec", "--privileged", name, "sleep", "777")
            stack.callback(process.wait)
            stack.callback(process.kill)
            pid = eventually(lambda: _find("sleep\0" + "777\0"), what="the exec")
            assert set(owner(pid)) == {str(first)}
            assert int(owner(pid, "CapEff")[0], 16).bit_count() > 30
            assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
            os.kill(pid, 9)


def _find(command):
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", encoding="utf-8") as file:
                if file.read() == command:
                    return int(entry)
    return None


def test_who_joins_can_not_be_looked_into(instance):
    """Races: whatever enters a hostile workload's namespaces shows it nothing of the host, however fast it looks."""
    watch = (
        "while :; do for p in /proc/[0-9]*; do (: >> $p/exe) 2>/dev/null && echo opened $p;"
        " ls $p/root/work $p/cwd/work 2>/dev/null | grep -q . && echo host $p;"
        " grep -a -s -q KNARR_ $p/environ && echo environ $p; done; done"
    )
    with box(instance, "--userns", "auto", *EVERYTHING, command=("sh", "-c", watch)) as mapped:
        for _ in range(12):
            assert instance.knarr("exec", mapped, "true").code == 0
            assert run(instance, "--pid", f"container:{mapped}", "base:1", "true").code == 0
        assert instance.knarr("logs", mapped).out == ""


def test_joined_shared_memory_brings_no_programs_and_no_links(instance):
    words = ("--ipc", "shareable", *EVERYTHING)
    with box(instance, *words) as donor:
        script = (
            "mount -o remount,exec,suid,dev /dev/shm; cp /bin/tool /dev/shm/tool; chmod 4755 /dev/shm/tool"
        )
        assert instance.knarr("exec", "--privileged", donor, "sh", "-c", script).code == 0
        joined = ("--ipc", f"container:{donor}", "base:1")
        flags = run(instance, *joined, "grep", " /dev/shm ", "/proc/mounts").out.split()[3].split(",")
        assert {"nosuid", "nodev", "noexec"} <= set(flags)
        assert run(instance, *joined, "/dev/shm/tool", "/bin/true").code == 126
        instance.knarr("exec", donor, "sh", "-c", "umount /dev/shm; rmdir /dev/shm; ln -s /proc /dev/shm")
        refused = run(instance, *joined, "true")
        assert refused.code == 125
        assert "Traceback" not in refused.err


def test_nobody_joins_a_dead_workload(instance):
    with box(instance, "--ipc", "shareable") as name:
        pid, _ = outside(instance, name)
        instance.knarr("kill", name, check=True)
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        for option in ("--pid", "--ipc", "--network"):
            refused = run(instance, option, f"container:{name}", "base:1", "true")
            assert refused.code == 125
            assert "does not run" in refused.err


def test_ranges_are_this_instances_alone_over_restarts(instance, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("images") / "image.tar")
    busybox_archive(path, tag="base:1")
    other = Instance()
    try:
        other.knarr("daemon", "start", check=True)
        other.knarr("load", "-i", path, check=True)
        with box(instance, "--userns", "auto") as here, box(other, "--userns", "auto") as there:
            firsts = [outside(instance, here)[1], outside(other, there)[1]]
            assert firsts[0] >> 24 != firsts[1] >> 24
            other.knarr("daemon", "stop", check=True)
            time.sleep(0.1)
            other.knarr("daemon", "start", check=True)
            with box(other, "--userns", "auto") as third:
                assert abs(outside(other, third)[1] - firsts[1]) >= 65536
    finally:
        other.close()


def test_ids_that_another_instance_has_by_now_are_changed_at_the_start(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("images") / "image.tar")
    busybox_archive(path, tag="base:1")
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        made.knarr("load", "-i", path, check=True)
        name = made.knarr("create", "--userns", "auto", "base:1", "sleep", "1000", check=True).out.strip()
        before = json.loads(made.knarr("inspect", name, check=True).out)[0]["ids"]["uids"][0][1]
        made.knarr("daemon", "stop", "--workloads", check=True)
        # what another instance's claim is
        with open(f"/run/lock/knarr/ids-{before >> 24 << 24:08x}", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.knarr("daemon", "start", check=True)
            made.knarr("start", name, check=True)
            assert outside(made, name)[1] >> 24 != before >> 24
            made.knarr("rm", "-f", name)
            os.unlink(lock.name)
    finally:
        made.close()


def test_the_settings_file_holds_for_all_that_do_not_say_otherwise(instance):
    path = os.path.join(instance.root, "settings.json")
    look = ("base:1", "cat", "/proc/self/uid_map")
    try:
        for text, first in (('{"userns": "auto:size=2000"}', "2000"), ('{"userns": "host"}', "4294967295")):
            _write(path, text)
            assert run(instance, *look).out.split()[2] == first
        _write(path, '{"userns": "auto"}')
        assert run(instance, "--userns", "host", *look).out.split()[2] == "4294967295"
        assert "--userns host" in run(instance, "--privileged", *look).err
        for text, fact in (
            ('{"userns": "keep-id"}', "keep-id"),
            ('{"userns": 7}', "userns is not text"),
            ('{"usrens": "auto"}', "'usrens' is unknown"),
            ("auto", "not JSON"),
        ):
            _write(path, text)
            refused = run(instance, *look)
            assert refused.code == 125
            assert fact in refused.err
            assert path in refused.err
    finally:
        os.unlink(path)


def _write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
