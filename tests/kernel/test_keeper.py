"""The real keeper's verbs, each once: starts and their failures, execs, signals, roots, forgetting, the end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.keeper_tools import ENV, STREAMS, Instance, in_instance, needs_root
from knarr.keeper import boot, roles
from knarr.keeper.link import KeeperError
from knarr.kernel.namespaces import CLONE_NEWNS, CLONE_NEWPID
from knarr.kernel.plan import Plan
from knarr.kernel.steps import CgroupCreate, Guard, MakePrivate, Pty, Sethostname
from knarr.model.errors import Conflict

pytestmark = needs_root


def read_all(fd):
    with open(fd, "rb") as file:
        return file.read()


def test_a_workload_runs_ends_and_starts_again(tmp_path):
    async def work(it):
        for code in (3, 4):
            pid = await it.shell("w", f"echo out{code}; echo err >&2; exit {code}")
            assert pid > 1
            assert await it.exit_of("w") == code << 8
            running, exits = await it.link.list()
            assert not running
            assert exits["w"][0] == code << 8
            await it.link.forget("w")
        await it.link.drain("w")
        assert it.output("w") == b"out3\nout4\n"
        assert it.output("w", 2) == b"err\nerr\n"
        assert await it.link.list() == ({}, {})
        await it.until(lambda: it.holder.list("log/") == [])

    in_instance(tmp_path, work)


def test_a_program_has_its_declared_descriptors_and_nothing_else(tmp_path):
    async def work(it):
        read, write = os.pipe()
        plan = Plan(
            argv=("/bin/sh", "-c", "ls -l /proc/self/fd; pwd; echo given >&7; cat /proc/self/status"),
            env=ENV,
            fds={**STREAMS, "mine": 7},
        )
        await it.link.start("w", plan, {"mine": write}, it.streams("w"))
        os.close(write)
        assert read_all(read) == b"given\n"
        await it.exit_of("w")
        await it.link.drain("w")
        listing, _, status = it.output("w").decode().partition("\n/\n")
        numbers = [line.split()[8] for line in listing.splitlines() if "->" in line]
        # 3 is ls's own
        assert sorted(numbers) == ["0", "1", "2", "3", "7"]
        assert "/dev/null" in listing
        for field in ("SigBlk", "SigIgn"):
            assert f"{field}:\t0000000000000000" in status

    in_instance(tmp_path, work)


def test_failures_name_the_step_and_leave_nothing(tmp_path):
    async def work(it):
        cases = [
            (Plan(argv=("/nowhere",), fds=STREAMS), "exec", 2),
            (Plan(argv=("/etc/passwd",), fds=STREAMS), "exec", 13),
            (Plan(inside=(Sethostname(name="x" * 100),), argv=("/bin/true",)), "Sethostname", 22),
            (Plan(outside=(CgroupCreate(groups=("/proc/none",)),), argv=("/bin/true",)), "CgroupCreate", 2),
            (Plan(clone_flags=0x1, argv=("/bin/true",)), "clone", 22),
        ]
        for plan, step, number in cases:
            with pytest.raises(KeeperError) as caught:
                await it.link.start("w", plan, {}, it.streams("w", stdin=True))
            assert (caught.value.step, caught.value.errno) == (step, number)
        with pytest.raises(KeeperError):
            await it.link.start("../w", Plan(argv=("/bin/true",)), {}, {})
        assert await it.link.list() == ({}, {})
        assert it.exits.empty()
        await it.until(lambda: it.holder.list("log/") == it.holder.list("in/") == [])

    in_instance(tmp_path, work)


def test_a_group_is_removed_when_the_workload_is_forgotten(tmp_path):
    group = f"/sys/fs/cgroup/pids/knarr_test_{os.getpid()}"
    if not os.path.isdir("/sys/fs/cgroup/pids"):
        pytest.skip("needs cgroup v1's pids hierarchy")

    async def work(it):
        plan = Plan(outside=(CgroupCreate(groups=(group,)),), argv=("/bin/true",))
        await it.link.start("w", plan, {}, {})
        await it.exit_of("w")
        assert os.path.isdir(group)
        it.kill("keeper")
        await it.link.forget("w")
        assert not os.path.exists(group)

    in_instance(tmp_path, work)


def test_exec_joins_the_workloads_pid_namespace(tmp_path):
    async def work(it):
        plan = Plan(
            clone_flags=CLONE_NEWPID | CLONE_NEWNS, inside=(MakePrivate(),), argv=("/bin/sleep", "1000")
        )
        await it.link.start("w", plan, {}, {})
        inside = Plan(
            join="pidfd", argv=("/bin/sh", "-c", "cat; echo $$; echo oops >&2; exit 5"), env=ENV, fds=STREAMS
        )
        _, ends = await it.link.exec(
            "w", "e1", inside, streams={"stdin": True, "stdout": True, "stderr": True}
        )
        os.write(ends["stdin"], b"typed\n")
        os.close(ends["stdin"])
        assert read_all(ends["stdout"]) == b"typed\n2\n"
        assert read_all(ends["stderr"]) == b"oops\n"
        assert (await it.exits.get())[0::3] == ("w", "e1")
        with pytest.raises(KeeperError) as caught:
            await it.link.exec("w", "e2", Plan(join="pidfd", argv=("/nowhere",)))
        assert caught.value.errno == 2
        _, ends = await it.link.exec(
            "w",
            "e3",
            Plan(join="pidfd", argv=("/bin/sleep", "1000")),
            streams={"stdout": False, "stderr": False},
        )
        assert ends == {}
        await it.link.signal("w", 15, "e3")
        assert (await it.exits.get())[:2] == ("w", 15)
        await it.link.signal("w", 9)
        assert await it.exit_of("w") == 9
        with pytest.raises(KeeperError) as caught:
            await it.link.exec("w", "e4", inside)
        assert caught.value.errno == 3

    in_instance(tmp_path, work)


def test_a_terminal_for_an_exec(tmp_path):
    async def work(it):
        await it.shell("w", "exec sleep 1000")
        plan = Plan(inside=(Guard(), Pty(console=False)), argv=("/bin/sh", "-c", "tty"), env=ENV, fds=STREAMS)
        _, ends = await it.link.exec("w", "e", plan, streams={"tty": True})
        assert os.read(ends["tty"], 100).startswith(b"/dev/pts/")
        os.close(ends["tty"])
        await it.exits.get()

    in_instance(tmp_path, work)


def test_the_root_of_a_running_workload(tmp_path):
    async def work(it):
        await it.shell("w", "exec sleep 1000")
        root = await it.link.root("w")
        assert os.path.samestat(os.fstat(root), os.stat("/"))
        os.close(root)
        with pytest.raises(KeeperError):
            await it.link.root("nobody")
        with pytest.raises(KeeperError):
            await it.link.unmount("../..")
        await it.link.unmount("abc")

    in_instance(tmp_path, work)


def test_the_keepers_interpreter_is_out_of_reach_and_binds_are_writable(tmp_path):
    async def work(it):
        pid = it.holder.roles()["keeper"]
        with pytest.raises(OSError, match=r"Read-only|Text file busy"):
            os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        root = next(line for line in mounts.splitlines() if line.split()[4] == "/")
        assert "master:" in root or "shared:" not in root
        await it.shell("w", f"echo x >{tmp_path}/written; readlink /proc/$PPID/exe")
        assert await it.exit_of("w") == 0
        assert (tmp_path / "written").read_text() == "x\n"

    in_instance(tmp_path, work)


def test_thousands_of_workloads_are_listed_in_pages(tmp_path):
    async def work(it):
        names = [f"w{number:03d}" for number in range(600)]
        for start in range(0, 600, 60):
            await asyncio.gather(
                *(
                    it.link.start(name, Plan(argv=("/bin/sleep", "1000")), {}, {})
                    for name in names[start : start + 60]
                )
            )
        it.kill("keeper")
        running, _ = await it.link.list()
        assert sorted(running) == names
        await asyncio.gather(*(it.link.signal(name, 9) for name in names))
        for _ in names:
            assert (await asyncio.wait_for(it.exits.get(), 20))[1] == 9
        await asyncio.gather(*(it.link.forget(name) for name in names))

    in_instance(tmp_path, work)


def control(*argv):
    code = f"import sys; sys.path[:0]=[{roles.SOURCE!r}]; from knarr.keeper.control import main; raise SystemExit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, *argv], capture_output=True, check=False, timeout=60
    )
    return done.returncode, json.loads(done.stdout)


def test_control_starts_once_and_leaves_nothing(tmp_path):
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    code, first = control("start", root, run, "--no-daemon")
    assert code == 0
    assert first["holder_pid"] > 1
    assert control("start", root, run, "--no-daemon")[1]["keeper_pid"] == first["keeper_pid"]
    code, answer = control("start", root, str(tmp_path / "other"), "--no-daemon")
    assert code == 1
    assert answer["error"]["kind"] == "conflict"
    assert control("status", root, run)[1]["roles"].keys() == {"mover-0", "keeper"}
    assert control("stop", root, run)[1] == {"stopped": True, "workloads": 0}
    assert control("stop", root, run)[1] == {"stopped": False, "workloads": 0}
    for pid in (first["holder_pid"], first["keeper_pid"], *first["mover_pids"]):
        assert (
            not os.path.exists(f"/proc/{pid}")
            or Path(f"/proc/{pid}/status").read_text().split("State:\t")[1][0] == "Z"
        )
    assert [name for name in os.listdir(run) if name.endswith(".sock")] == []
    assert control("nonsense", root, run)[0] == 1


def test_stop_spares_living_workloads_unless_told(tmp_path):
    async def work():
        async with Instance(tmp_path) as it:
            await it.shell("w", "exec sleep 1000")
            assert boot.stop_instance(it.root, it.run) == {"stopped": True, "workloads": 1, "left": ["w"]}
            assert (await it.link.list())[0].keys() == {"w"}

    asyncio.run(work())


def test_a_root_served_by_another_is_refused(tmp_path):
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="already serves"):
        boot.start_instance(str(tmp_path), str(tmp_path / "run"), daemon=False)
    os.close(fd)


def test_the_keeper_is_small_and_idle(tmp_path):
    async def work(it):
        sizes = {}
        for role in ("keeper", "mover-0"):
            status = Path(f"/proc/{it.holder.roles()[role]}/status").read_text()
            sizes[role] = int(status.split("VmRSS:")[1].split()[0])
        print(sizes)
        assert max(sizes.values()) < 24 * 1024

    in_instance(tmp_path, work)
