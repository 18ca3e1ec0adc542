"""Namespaces shared with the host or another workload, and user namespaces; a wall without them refuses by name."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.harness import Wall

USERNS = ("--userns", "auto")


@pytest.fixture
def container(wall: Wall) -> Wall:
    if wall.isolation != "container":
        pytest.skip("only containers share namespaces; the refusals are cases of their own")
    return wall


@pytest.fixture
def donor(container: Wall) -> Iterator[str]:
    with container.box(opts=("--ipc", "shareable", "--hostname", "donor")) as name:
        yield name


def state(wall: Wall, name: str) -> dict:
    return json.loads(wall.knarr("inspect", name, check=True).out)[0]


def ids(wall: Wall, name: str) -> list[int]:
    """First id inside, first on the host, how many: as the host sees the workload's process."""
    with open(f"/proc/{state(wall, name)['pid']}/uid_map", encoding="ascii") as file:
        return [int(word) for word in file.readline().split()]


def owner(wall: Wall, path: str) -> tuple[int, int]:
    """As the archive of `cp PATH -` tells it."""
    process = wall.instance.popen("cp", path, "-", stdout=subprocess.PIPE)
    data, _ = process.communicate(timeout=60)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.getmembers()[0]
        return member.uid, member.gid


@pytest.mark.smoke
def test_what_a_machine_can_not_share_is_refused_by_name(wall: Wall) -> None:
    if wall.isolation == "container":
        assert wall.run("true", opts=("--uts", "host", "--cgroupns", "host", "--ipc", "none")).code == 0
        return
    cases = (
        *(("--pid", "host"), ("--ipc", "host"), ("--uts", "host"), ("--cgroupns", "host")),
        *(("--pid", "container:other"), ("--userns", "auto"), ("--network", "container:other")),
    )
    for option, mode in cases:
        result = wall.run("true", opts=(option, mode))
        assert result.code == 125, (option, result)
        assert f"isolation {wall.isolation} can't do {option}" in result.err, result


# shared


def test_shared_processes(container: Wall, donor: str) -> None:
    shared = ("--pid", f"container:{donor}")
    result = container.shell("echo $$; ls -d /proc/1; tr '\\0' ' ' </proc/1/cmdline", shared)
    assert int(result.lines[0]) > 1
    assert "sleep 1000" in result.lines[2]
    with container.box("sh", "-c", "sleep 2000 & sleep 3000", opts=shared) as guest:
        listed = container.exec(donor, "ps").out
        assert "sleep 3000" in listed
        pid = state(container, guest)["pid"]
        container.knarr("kill", guest)
        eventually(lambda: state(container, guest)["status"] == "exited", what="the end")
        # its own processes went with it, nobody else's
        assert not os.path.exists(f"/proc/{pid}")
        eventually(lambda: "sleep 2000" not in container.exec(donor, "ps").out, what="the child's end")
        assert "sleep 1000" in container.exec(donor, "ps").out


def test_who_joined_ends_with_its_pid_namespace(container: Wall, donor: str) -> None:
    with container.box(opts=("--pid", f"container:{donor}")) as guest:
        container.knarr("rm", "-f", donor)
        assert container.knarr("wait", guest).lines == ["137"]
        refused = container.knarr("start", guest)
        assert refused.code != 0
        assert "no such workload" in refused.err


def test_the_hosts_processes(container: Wall) -> None:
    own = os.getpid()
    result = container.shell(f"echo $$; ls -d /proc/{own}", ("--pid", "host"))
    assert f"/proc/{own}" in result.out
    with container.box("sh", "-c", "sleep 4321 & sleep 1000", opts=("--pid", "host")) as name:
        assert container.exec(name, "sh", "-c", f"ls -d /proc/{own}").code == 0
        inside = container.knarr("top", name, "-o", "pid,args").out
        child = next(int(line.split()[0]) for line in inside.splitlines() if "sleep 4321" in line)
        container.knarr("stop", "-t", "0", name, check=True)
        eventually(lambda: not os.path.exists(f"/proc/{child}"), what="the end of what it left")


def test_shared_memory(container: Wall, donor: str) -> None:
    container.exec(donor, "sh", "-c", "echo shared >/dev/shm/x", opts=())
    assert container.run("cat", "/dev/shm/x", opts=("--ipc", f"container:{donor}")).lines == ["shared"]
    with container.box() as private:
        refused = container.run("true", opts=("--ipc", f"container:{private}"))
        assert refused.code == 125
        assert "not shareable" in refused.err
    none = container.shell("grep -c ' /dev/shm ' /proc/mounts", ("--ipc", "none"))
    assert none.lines == ["0"]


def test_a_joined_network(container: Wall) -> None:
    with container.box("sh", "-c", "echo hello | nc -l -p 99", opts=("-h", "donor")) as donor:
        joined = ("--network", f"container:{donor}")
        address = state(container, donor)["address"]
        script = "hostname; ip -4 -o addr show eth0; grep donor /etc/hosts; nc -w 2 127.0.0.1 99"
        result = eventually(
            lambda: (found := container.shell(script, joined)) and "hello" in found.out and found
        )
        assert result.lines[0] == "donor"
        assert address in result.lines[1]
        assert result.lines[2] == f"{address}\tdonor"


def test_what_a_joined_network_excludes(container: Wall, donor: str) -> None:
    joined = ("--network", f"container:{donor}")
    for option, value, text in (
        ("-p", "8080:80", "port publishing and the container type network mode"),
        ("--hostname", "other", "hostname and the network mode"),
        ("--dns", "192.0.2.1", "dns and the network mode"),
        ("--add-host", "mars:10.0.0.1", "custom host-to-IP mapping and the network mode"),
        ("--sysctl", "net.core.somaxconn=10", "another workload's"),
    ):
        result = container.run("true", opts=(*joined, option, value))
        assert result.code == 125, (option, result)
        assert text in result.err, (option, result)


def test_who_is_joined_must_run(container: Wall) -> None:
    name = container.create("sleep", "1000", opts=("--ipc", "shareable"))
    try:
        for option, noun in (("--network", "network"), ("--pid", "PID"), ("--ipc", "IPC")):
            refused = container.run("true", opts=(option, f"container:{name}"))
            assert refused.code == 125
            assert f"{noun} namespace of {name!r}: it does not run" in refused.err, refused
    finally:
        container.knarr("rm", name)
    for mode in ("container:nobody-here", "container:"):
        assert container.run("true", opts=("--network", mode)).code == 125


def test_a_network_of_before_stays_until_the_joiner_starts_again(container: Wall, donor: str) -> None:
    with container.box(opts=("--network", f"container:{donor}")) as guest:
        link = container.exec(guest, "readlink", "/proc/self/ns/net").out
        container.knarr("restart", "-t", "0", donor, check=True)
        assert container.exec(guest, "readlink", "/proc/self/ns/net").out == link
        container.knarr("restart", "-t", "0", guest, check=True)
        now = container.exec(donor, "readlink", "/proc/self/ns/net").out
        assert container.exec(guest, "readlink", "/proc/self/ns/net").out == now != link


def test_names_and_groups_of_the_host(container: Wall) -> None:
    assert container.run("hostname", opts=("--uts", "host")).lines == [os.uname().nodename]
    refused = container.run("true", opts=("--uts", "host", "--hostname", "mine"))
    assert "hostname and the UTS mode" in refused.err
    own = container.shell("cat /proc/self/cgroup", ("--cgroupns", "private")).out
    whole = container.shell("cat /proc/self/cgroup", ("--cgroupns", "host")).out
    assert "/knarr_" not in own
    assert "/knarr_" in whole
    for option in ("--pid", "--ipc", "--uts", "--cgroupns"):
        result = container.run("true", opts=(option, "somewhere"))
        assert result.code == 125
        assert "somewhere" in result.err


# user namespaces


@pytest.mark.smoke
def test_ids_of_its_own(wall: Wall) -> None:
    if wall.isolation != "container":
        assert "its kernel is the wall" in wall.run("true", opts=USERNS).err
        return
    container = wall
    with container.box(opts=USERNS) as first, container.box(opts=USERNS) as second:
        one, two = ids(container, first), ids(container, second)
        assert state(container, first)["ids"]["uids"] == [one]
        assert (one[0], one[2], two[2]) == (0, 65536, 65536)
        assert abs(one[1] - two[1]) >= 65536
        assert min(one[1], two[1]) > 1 << 24
        inside = container.exec(first, "sh", "-c", "id -u; cat /proc/self/uid_map; hostname").lines
        assert inside[0] == "0"
        assert [int(word) for word in inside[1].split()] == one
        user = container.exec(first, "id", opts=("-u", "alice"))
        assert user.lines == ["uid=1000(alice) gid=1000(alice) groups=50(staff)"], user
        assert container.knarr("top", first, "-o", "uid,args").lines[1].split()[0] == "root"


def test_the_network_works_in_a_user_namespace(container: Wall) -> None:
    script = (
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net; nc -l -p 80 & sleep 0.2;"
        " echo hi | nc -w 1 127.0.0.1 80; ping -c 1 127.0.0.1 >/dev/null && echo pinged;"
        " ip link add name br9 type bridge && ip -o link show br9 | cut -d: -f2"
    )
    result = container.shell(script, (*USERNS, "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"))
    assert result.lines[0] == "0"
    assert {"eth0", "lo", "hi", "pinged", " br9"} <= set(result.lines), result
    alone = container.shell("ls /sys/class/net; ip -o link | wc -l", (*USERNS, "--network", "none"))
    assert alone.lines == ["lo", "1"]


def test_devices_terminals_and_streams(container: Wall) -> None:
    script = (
        "echo one >/dev/stdout; echo two >/dev/stderr; head -c 4 /dev/urandom | wc -c; : >/dev/null;"
        " stat -c %u:%g /dev/null /dev/pts /dev/shm /"
    )
    result = container.shell(script, USERNS)
    assert result.lines == ["one", "4", "0:0", "0:0", "0:0", "0:0"]
    assert result.err == "two\n"
    code, shown = container.on_terminal(
        "run",
        "--rm",
        "-it",
        *USERNS,
        "--isolation",
        container.isolation,
        IMAGE,
        "sh",
        "-c",
        "tty; echo x >/dev/tty",
    )
    assert code == 0
    assert "/dev/pts/0" in shown
    assert "x" in shown


def test_files_keep_the_ids_that_are_seen_inside(container: Wall) -> None:
    volume = f"shared-{os.getpid()}"
    opts = ("-v", f"{volume}:/data")
    try:
        made = "touch /data/f && chown 33:44 /data/f && stat -c %u:%g /data/f"
        assert container.shell(made, (*USERNS, *opts)).lines == ["33:44"]
        assert container.shell("stat -c %u:%g /data/f", opts).lines == ["33:44"]
        assert container.shell("stat -c %u:%g /data/f", (*USERNS, *opts)).lines == ["33:44"]
    finally:
        container.knarr("volume", "rm", volume)


def test_copies_and_images_of_a_mapped_workload(container: Wall, tmp_path) -> None:
    source = tmp_path / "file"
    source.write_text("content")
    os.chown(source, 12, 13)
    image = f"mapped-{os.getpid()}:1"
    with container.box(opts=USERNS) as name:
        container.exec(name, "sh", "-c", "touch /made; chown 33:44 /made")
        container.knarr("cp", "-a", str(source), f"{name}:/copied", check=True)
        container.knarr("cp", str(source), f"{name}:/roots", check=True)
        listed = container.exec(name, "stat", "-c", "%u:%g", "/made", "/copied", "/roots")
        assert listed.lines == ["33:44", "12:13", "0:0"]
        assert owner(container, f"{name}:/made") == (33, 44)
        assert {"A /made", "A /copied", "A /roots"} <= set(container.knarr("diff", name).lines)
        container.knarr("commit", name, image, check=True)
        container.knarr("stop", "-t", "0", name, check=True)
        assert owner(container, f"{name}:/made") == (33, 44)
        container.knarr("start", name, check=True)
        assert container.exec(name, "stat", "-c", "%u:%g", "/made").lines == ["33:44"]
    try:
        shown = container.knarr("run", "--rm", image, "stat", "-c", "%u:%g", "/made", "/copied")
        assert shown.lines == ["33:44", "12:13"]
    finally:
        container.knarr("rmi", image)


def test_the_hosts_user_keeps_its_id(container: Wall, tmp_path) -> None:
    os.chmod(tmp_path, 0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1234, 1235)
    words = ("run", "--rm", "--userns", "keep-id:uid=77,gid=78", "-v", f"{home}:/srv/me")
    process = container.instance.popen(
        *words,
        *(
            "--isolation",
            container.isolation,
            IMAGE,
            "sh",
            "-c",
            "id -u; touch /srv/me/new; stat -c %u:%g /srv/me",
        ),
        env={**os.environ, "SUDO_UID": "1234", "SUDO_GID": "1235"},
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(timeout=60)
    assert out.split() == [b"77", b"77:78"]
    status = (home / "new").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1235)
    refused = container.run("true", opts=("--userns", "keep-id"))
    assert refused.code == 125
    assert "host's root" in refused.err


def test_remapped_ranges(container: Wall) -> None:
    opts = ("--userns", "remap")
    with container.box(opts=opts) as first, container.box(opts=opts) as second:
        assert ids(container, first) == ids(container, second)
    own = container.run("cat", "/proc/self/uid_map", opts=("--userns", "remap:300000:1000"))
    assert own.out.split() == ["0", "300000", "1000"]
    refused = container.run("true", opts=("--userns", "remap:0:65536"))
    assert refused.code == 125
    assert "host's own users" in refused.err
    plain = container.run("cat", "/proc/self/uid_map", opts=("--userns", "host"))
    assert plain.out.split() == ["0", "0", "4294967295"]


def test_what_a_user_namespace_excludes(container: Wall) -> None:
    for words in (("--privileged",), ("--network", "host"), ("--pid", "host"), ("--ipc", "host")):
        result = container.run("true", opts=(*USERNS, *words))
        assert result.code == 125, words
        assert "user namespace" in result.err
        assert "--userns host" in result.err


@pytest.mark.smoke
def test_a_profile_of_ones_own(wall: Wall, tmp_path) -> None:
    profile = tmp_path / "profile.json"
    rules = [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {
            "names": ["kill"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
        },
    ]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    opts = ("--security-opt", f"seccomp={profile}", "--security-opt", "mask=/etc/hostname")
    script = (
        "mkdir /x 2>&1; trap 'echo got' USR2; kill -USR1 $$ 2>&1; kill -USR2 $$; wc -c </etc/hostname;"
        " (echo 4096 >/proc/sys/kernel/shmmni) && echo written"
    )
    lines = wall.shell(script, (*opts, "--security-opt", "unmask=/proc/sys")).lines
    assert "No space left" in lines[0]
    assert "not permitted" in lines[1]
    assert lines[2:] == ["got", "0", "written"]


def test_a_wrong_profile_is_told_at_creation(wall: Wall, tmp_path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["raed"],"action":"SCMP_ACT_LOG"}]}'
    )
    refused = wall.run("true", opts=("--security-opt", f"seccomp={profile}"))
    assert refused.code == 125
    assert "'raed' is unknown" in refused.err


def test_a_file_system_that_can_not_map_ids_is_named(container: Wall) -> None:
    refused = container.run("true", opts=(*USERNS, "-v", "/sys/kernel/mm:/x:idmap"))
    assert refused.code == 125
    assert "can't map user ids in '/sys/kernel/mm'" in refused.err


def test_privileged_is_whole(wall: Wall) -> None:
    script = (
        "grep -c ' /proc/' /proc/mounts; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t';"
        " d=$(ls -d /sys/fs/cgroup/pids /sys/fs/cgroup 2>/dev/null | head -1); mkdir $d/x && rmdir $d/x && echo groups;"
        " mount -o remount,ro /sys && echo sys; hostname other && hostname"
    )
    found = wall.shell(script, ("--privileged",))
    assert found.lines == ["0", "NoNewPrivs:0", "Seccomp:0", "groups", "sys", "other"], found
    if wall.isolation == "container":
        assert wall.shell("head -c 1 /dev/kmsg | wc -c", ("--privileged",)).lines == ["1"]
    confined = wall.shell(f"({script}) 2>/dev/null").lines
    assert confined[0] != "0"
    assert not {"groups", "sys", "other"} & set(confined), confined
