"""User, environment, working directory, limits, capabilities, devices: what the process finds, the same behind every wall."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from conformance.harness import IMAGE, Wall, eventually
from knarr.model.units import parse_bytes


@pytest.mark.smoke
def test_user_by_name_with_its_groups(wall: Wall) -> None:
    assert wall.run("id", opts=("--user", "alice")).out.startswith("uid=1000(alice) gid=1000(alice)")
    assert "staff" in wall.run("id", opts=("--user", "alice")).out


def test_user_by_number(wall: Wall) -> None:
    assert wall.run("id", "-u", opts=("--user", "4242")).out == "4242\n"


def test_user_and_group_by_number(wall: Wall) -> None:
    result = wall.shell("id -u; id -g", opts=("--user", "12:34"))
    assert result.lines == ["12", "34"]


def test_group_add(wall: Wall) -> None:
    groups = wall.run("id", "-G", opts=("--user", "alice", "--group-add", "777")).out.split()
    assert "777" in groups


@pytest.mark.smoke
def test_environment_and_its_defaults(wall: Wall) -> None:
    out = wall.run("env", opts=("-e", "COLOUR=deep blue", "-e", "EMPTY=")).lines
    assert "COLOUR=deep blue" in out
    assert "EMPTY=" in out
    assert any(line.startswith("PATH=") for line in out)
    assert "HOME=/root" in out
    assert any(line.startswith("HOSTNAME=") for line in out)


def test_home_is_the_users(wall: Wall) -> None:
    assert "HOME=/home/alice" in wall.run("env", opts=("--user", "alice")).lines


def test_environment_value_with_newline(wall: Wall) -> None:
    assert wall.shell('printf %s "$V"', opts=("-e", "V=a\nb=c")).out == "a\nb=c"


@pytest.mark.smoke
def test_workdir(wall: Wall) -> None:
    assert wall.run("pwd", opts=("-w", "/tmp")).out == "/tmp\n"


def test_workdir_is_made_when_missing(wall: Wall) -> None:
    assert wall.run("pwd", opts=("-w", "/made/for/you")).out == "/made/for/you\n"


def test_workdir_may_not_be_a_descriptor(wall: Wall) -> None:
    result = wall.shell("cat etc/hostname 2>/dev/null; ls", opts=("-w", "/proc/self/fd/7"))
    assert result.code != 0


@pytest.mark.smoke
def test_hostname(wall: Wall) -> None:
    assert wall.shell("hostname; cat /etc/hostname", opts=("--hostname", "pluto")).lines == ["pluto", "pluto"]


def test_default_hostname_is_the_short_id(wall: Wall) -> None:
    with wall.box() as name:
        ident = json.loads(wall.knarr("inspect", name).out)[0]["id"]
        assert wall.exec(name, "hostname").out.strip() == ident[:12]


@pytest.mark.smoke
def test_read_only_root_refuses_writes(wall: Wall) -> None:
    result = wall.shell("touch /x && echo wrote; touch /dev/shm/y && echo shm", opts=("--read-only",))
    assert result.lines == ["shm"]
    assert "Read-only" in result.err


def test_root_is_writable_by_default(wall: Wall) -> None:
    assert wall.shell("echo 1 > /x && cat /x").out == "1\n"


def test_tmpfs_mount_with_size(wall: Wall) -> None:
    result = wall.shell(
        "df -k /scratch | tail -1; touch /scratch/f && echo ok", opts=("--tmpfs", "/scratch:size=1m")
    )
    assert "1024" in result.lines[0]
    assert result.lines[-1] == "ok"


def test_default_capabilities_are_dockers(wall: Wall) -> None:
    line = wall.shell("grep CapBnd /proc/self/status").out.split()[1]
    assert int(line, 16) == 0xA80425FB


def test_cap_drop_all(wall: Wall) -> None:
    result = wall.shell("grep -E 'Cap(Bnd|Eff|Prm|Inh|Amb)' /proc/self/status", opts=("--cap-drop", "ALL"))
    assert {line.split()[1] for line in result.lines} == {"0" * 16}


def test_cap_add(wall: Wall) -> None:
    line = wall.shell("grep CapEff /proc/self/status", opts=("--cap-add", "SYS_TIME")).out.split()[1]
    assert int(line, 16) & (1 << 25)


def test_a_plain_user_has_no_effective_capability(wall: Wall) -> None:
    line = wall.shell("grep CapEff /proc/self/status", opts=("--user", "alice")).out.split()[1]
    assert int(line, 16) == 0


def test_no_new_privileges(wall: Wall) -> None:
    script = "grep NoNewPrivs /proc/self/status"
    assert wall.shell(script).out.split()[1] == "0"
    assert wall.shell(script, opts=("--security-opt", "no-new-privileges")).out.split()[1] == "1"


def test_hardened_profile(wall: Wall) -> None:
    out = wall.shell(
        "grep -E 'CapBnd|NoNewPrivs' /proc/self/status", opts=("--security-profile", "hardened")
    ).out
    assert "NoNewPrivs:\t1" in out
    assert "00000000a80425fb" not in out


@pytest.mark.smoke
def test_seccomp_filter_is_loaded(wall: Wall) -> None:
    assert wall.shell("grep Seccomp: /proc/self/status").out.split()[1] == "2"


def test_mount_is_refused(wall: Wall) -> None:
    result = wall.shell("mount -t tmpfs none /mnt && echo mounted")
    assert "mounted" not in result.out


def test_privileged_may_mount(wall: Wall) -> None:
    result = wall.shell("mkdir -p /m && mount -t tmpfs none /m && echo mounted", opts=("--privileged",))
    assert result.out == "mounted\n"


def test_masked_paths(wall: Wall) -> None:
    result = wall.shell(
        "cat /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware | wc -l; ls /proc/scsi 2>/dev/null | wc -l"
    )
    assert result.lines == ["0", "0", "0"]


def test_proc_sys_is_read_only(wall: Wall) -> None:
    result = wall.shell("echo x > /proc/sys/kernel/domainname; echo $?")
    assert result.lines[-1] != "0"


@pytest.mark.smoke
def test_device_nodes(wall: Wall) -> None:
    script = "for d in null zero full random urandom tty; do [ -c /dev/$d ] && echo $d; done; head -c 4 /dev/zero | wc -c"
    assert wall.shell(script).lines == ["null", "zero", "full", "random", "urandom", "tty", "4"]


def test_a_disk_node_can_not_be_opened(wall: Wall) -> None:
    result = wall.shell("mknod /tmp/d b 254 0 && head -c 1 /tmp/d | wc -c")
    assert result.lines in ([], ["0"])


@pytest.mark.smoke
def test_only_three_descriptors(wall: Wall) -> None:
    assert wall.shell("ls /proc/self/fd | wc -l").out.strip() == "4"  # 0-2 and ls's own folder


def test_rlimits(wall: Wall) -> None:
    assert wall.shell("ulimit -n", opts=("--ulimit", "nofile=123:456")).out == "123\n"


@pytest.mark.smoke
def test_memory_limit_kills_with_137(wall: Wall) -> None:
    name = wall.create("sh", "-c", "tail -c 200m /dev/zero | wc -c; tail /dev/zero", opts=("--memory", "64m"))
    try:
        wall.knarr("start", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "137"
        assert json.loads(wall.knarr("inspect", name).out)[0]["oom_killed"] is True
    finally:
        wall.knarr("rm", "-f", name)


def test_pids_limit(wall: Wall) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 2 & done; echo started"
    result = wall.shell(script, opts=("--pids-limit", "8"))
    assert result.code != 0
    assert "fork" in result.err


def test_cpus_accepted_and_shown(wall: Wall) -> None:
    with wall.box(opts=("--cpus", "0.5")) as name:
        assert json.loads(wall.knarr("inspect", name).out)[0]["spec"]["resources"]["cpus"] == 0.5


def test_stats_are_plausible(wall: Wall) -> None:
    with wall.box("sh", "-c", "while :; do :; done") as name:

        def busy() -> dict[str, str] | None:
            data = json.loads(wall.knarr("stats", "--no-stream", "--format", "json", name).lines[0])
            return data if float(data["CPUPerc"].rstrip("%")) > 5 else None

        data = eventually(busy, what="some processor time")
        assert 50_000 < parse_bytes(data["MemUsage"].split(" / ")[0]) < 600 << 20
        assert int(data["PIDs"]) >= 1


def test_umask_and_root_folder(wall: Wall) -> None:
    assert wall.shell("umask; stat -c %a /").lines == ["0022", "755"]


def test_no_signal_is_ignored_or_blocked(wall: Wall) -> None:
    out = wall.run("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status").out.split()
    assert out[1::2] == ["0" * 16, "0" * 16]


def test_ctrl_c_thrice_leaves_a_program_that_ignores_it(wall: Wall) -> None:
    name = f"deaf-{os.getpid()}"
    words = ("run", "--rm", "--name", name, "--isolation", wall.isolation, IMAGE)
    process = wall.instance.popen(
        *words, "sh", "-c", "trap '' INT; echo up; sleep 1000", stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    try:
        for turn in range(3):
            assert process.poll() is None, turn
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, told = process.communicate(timeout=20)
        assert process.returncode == 1
        assert b"the workload goes on" in told
        assert wall.knarr("inspect", "--format", "{{.status}}", name).out == "running\n"
    finally:
        wall.knarr("rm", "-f", name)
