"""Keeper and mover killed at random moments: nothing is lost, nothing is doubled, exit codes are right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess

import pytest

from kernel.keeper_tools import ENV, STREAMS, in_instance, needs_root
from knarr.keeper import boot, logfiles, processes, waiting
from knarr.keeper.journal import Journal
from knarr.keeper.link import KeeperError
from knarr.kernel import plan as plans
from knarr.kernel.plan import Plan
from knarr.kernel.steps import CgroupCreate, Guard, Pty
from knarr.model.errors import Unavailable

pytestmark = needs_root

LINES = 100_000
NUMBERS = (
    "i=0; while [ $i -lt 100 ]; do seq -f '%08.0f line of a workload' $((i*1000)) $((i*1000+999)); "
    "i=$((i+1)); sleep 0.03; done; exit 7"
)


def numbered():
    return b"".join(b"%08d line of a workload\n" % number for number in range(LINES))


@pytest.mark.parametrize("rotated", [False, True])
def test_every_line_is_there_once_and_the_exit_code_is_right(tmp_path, rotated):
    async def work(it):
        if rotated:
            os.makedirs(it.log_folder("w"))
            logfiles.set_rotation(it.log_folder("w"), logfiles.Rotation(8 << 10, 10_000))
        await it.shell("w", NUMBERS)
        for _ in range(30):
            await it.kill_and_start(random.choice(("keeper", "mover-0")))
            await asyncio.sleep(random.uniform(0.0, 0.15))
        assert await it.exit_of("w") == 7 << 8
        await it.link.drain("w")
        assert it.output("w") == numbered()
        await it.link.forget("w")
        assert it.exits.empty()
        await it.until(lambda: it.holder.list("log/") == [])

    in_instance(tmp_path, work)


def test_both_at_once_and_an_end_that_nobody_watches(tmp_path):
    async def work(it):
        await it.shell("w", "echo before; sleep 0.3; echo after; echo problem >&2; exit 5")
        for role in ("keeper", "mover-0"):
            it.holder.norole(role)
        await it.until(lambda: it.holder.roles() == {})
        await it.link.close()
        await asyncio.sleep(0.5)
        boot.start_instance(it.root, it.run, daemon=False)
        await it.connect()
        assert it.hello.exits["w"][0] == 5 << 8
        await it.link.drain("w")
        assert it.output("w") == b"before\nafter\n"
        assert it.output("w", 2) == b"problem\n"

    in_instance(tmp_path, work)


def test_stdin_survives(tmp_path):
    async def work(it):
        await it.shell("w", "cat; exit 4", stdin=True)
        writer = it.holder.get("in/w")
        for number in range(10):
            os.write(writer, b"%d\n" % number)
            it.kill("keeper" if number % 2 else "mover-0")
            await asyncio.sleep(0.05)
        os.close(writer)
        it.holder.delete("in/w")
        assert await it.exit_of("w") == 4 << 8
        await it.link.drain("w")
        assert it.output("w") == b"".join(b"%d\n" % number for number in range(10))

    in_instance(tmp_path, work)


def test_a_terminal_survives(tmp_path):
    async def work(it):
        script = "trap 'exit 9' HUP; tty; stty size; while read -r line; do echo \"got $line\"; done; exit 6"
        plan = Plan(
            inside=(Guard(), Pty(columns=91, rows=17, console=False)),
            argv=("/bin/sh", "-c", script),
            env=ENV,
            fds=STREAMS,
        )
        await it.link.start("w", plan, {}, {"stdin": True, "tty": True, "log": it.log_folder("w")})
        for number in range(8):
            master = it.holder.get("log/w/tty")
            os.write(master, b"%d\n" % number)
            os.close(master)
            it.kill("keeper" if number % 2 else "mover-0")
            await it.until(lambda n=number: b"got %d\r\n" % n in it.output("w"))
        master = it.holder.get("log/w/tty")
        os.write(master, b"\x04")
        os.close(master)
        assert await it.exit_of("w") == 6 << 8
        await it.link.drain("w")
        text = it.output("w")
        assert b"/dev/pts/" in text
        assert b"17 91\r\n" in text
        assert text.count(b"got ") == 8
        await it.link.forget("w")
        await it.until(lambda: it.holder.list("log/") == [])

    in_instance(tmp_path, work)


def test_a_start_whose_answer_is_lost_happens_once(tmp_path):
    async def work(it):
        trace = tmp_path / "trace"
        plan = {
            name: Plan(argv=("/bin/sh", "-c", f"echo {name} >>{trace}"), env=ENV)
            for name in map("w{}".format, range(30))
        }
        for name, item in plan.items():
            task = asyncio.ensure_future(it.link.start(name, item, {}, {}))
            await asyncio.sleep(random.uniform(0.0, 0.004))
            await it.kill_and_start("keeper")
            await task
        statuses = {}
        while len(statuses) < len(plan):
            name, status, *_ = await asyncio.wait_for(it.exits.get(), 20)
            assert name not in statuses
            statuses[name] = status
        assert set(statuses.values()) == {0}
        assert sorted(trace.read_text().split()) == sorted(plan)
        for name in plan:
            await it.link.forget(name)
        assert await it.link.list() == ({}, {})

    in_instance(tmp_path, work)


def test_execs_in_flight_end_with_an_error_or_run(tmp_path):
    async def work(it):
        await it.shell("w", "exec sleep 1000")
        for number in range(6):
            plan = Plan(argv=("/bin/true",), env=ENV)
            task = asyncio.ensure_future(it.link.exec("w", f"e{number}", plan))
            await asyncio.sleep(random.uniform(0.0, 0.003))
            it.kill("keeper")
            with contextlib.suppress(Unavailable):
                _, ends = await task
                for fd in ends.values():
                    os.close(fd)
        await it.link.signal("w", 9)
        while (await asyncio.wait_for(it.exits.get(), 20))[0:2] != ("w", 9):
            pass

    in_instance(tmp_path, work)


def test_a_full_disk_loses_nothing(tmp_path):
    async def work(it):
        folder = it.log_folder("w")
        os.makedirs(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
        try:
            await it.shell("w", "seq 1 200000; exit 3")
            await asyncio.sleep(0.7)
            it.kill("mover-0")
            await asyncio.sleep(0.3)
            with pytest.raises(Unavailable):
                await it.link.drain("w", 0.3)
            assert waiting.read(it.run) == {"w": "No space left on device"}
            subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
            assert await it.exit_of("w") == 3 << 8
            await it.link.drain("w")
            assert waiting.read(it.run) == {}
            assert it.output("w") == b"".join(b"%d\n" % number for number in range(1, 200001))
            await it.link.forget("w")
            await it.until(lambda: it.holder.list("log/") == [])
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    in_instance(tmp_path, work)


def test_upgrade_keeps_the_children(tmp_path):
    async def work(it):
        await it.shell("w", "sleep 0.5; exit 8")
        pid = it.holder.roles()["keeper"]
        await it.link._ask({"type": "upgrade"})
        await it.until(lambda: it.link._line is not None)
        assert (await it.link.list())[0].keys() == {"w"}
        assert it.holder.roles()["keeper"] == pid
        assert await it.exit_of("w") == 8 << 8
        # it must be forgotten first
        with pytest.raises(KeeperError, match="known"):
            await it.shell("w", "true")

    in_instance(tmp_path, work)


def test_outside_steps_of_a_start_that_was_cut_short_are_undone(tmp_path):
    """The keeper dies after its first act and before it has a child to write down."""

    async def work(it):
        group = f"/sys/fs/cgroup/pids/{os.path.basename(tmp_path)}"
        if not os.path.isdir("/sys/fs/cgroup/pids"):
            group = f"/sys/fs/cgroup/{os.path.basename(tmp_path)}"
        plan = Plan(outside=(CgroupCreate(groups=(f"{group}/w",)),), argv=("x",))
        journal = Journal(f"{it.run}/keeper.journal", processes.boot_id())
        it.holder.norole("keeper")
        await it.until(lambda: "keeper" not in it.holder.roles())
        journal.intended("w", plans.to_json(plan)["outside"])
        journal.close()
        os.makedirs(f"{group}/w")
        try:
            boot.start_instance(it.root, it.run, daemon=False)
            await it.until(lambda: not os.path.exists(f"{group}/w"))
            assert Journal(f"{it.run}/keeper.journal", processes.boot_id()).intents == {}
            await it.shell("w", "exit 3")
            assert await it.exit_of("w") == 3 << 8
        finally:
            os.rmdir(group)

    in_instance(tmp_path, work)


def test_ten_upgrades_with_kills_between(tmp_path):
    """Children, a terminal and what an exec prints outlive them; starts go on as before."""

    async def work(it):
        await it.shell("w", NUMBERS)
        plan = Plan(
            inside=(Guard(), Pty(columns=80, rows=24, console=False)),
            argv=("/bin/sh", "-c", 'while read -r line; do echo "got $line"; done; exit 6'),
            env=ENV,
            fds=STREAMS,
        )
        await it.link.start("t", plan, {}, {"stdin": True, "tty": True, "log": it.log_folder("t")})
        _, ends = await it.link.exec(
            "w", "e", Plan(argv=("/bin/sh", "-c", "sleep 0.6; seq 1 9; exit 2"), env=ENV, fds=STREAMS)
        )
        pid = it.holder.roles()["keeper"]
        for number in range(10):
            await it.link._ask({"type": "upgrade"})
            await it.until(lambda: it.link._line is not None)
            assert (await it.link.list())[0].keys() >= {"w", "t"}
            assert it.holder.roles()["keeper"] == pid
            master = it.holder.get("log/t/tty")
            os.write(master, b"%d\n" % number)
            os.close(master)
            await it.shell(f"s{number}", f"exit {number}")
            if number in (3, 7):
                await it.kill_and_start("keeper")
                pid = it.holder.roles()["keeper"]
        with open(ends["stdout"], "rb") as file:
            assert await asyncio.to_thread(file.read) == b"".join(b"%d\n" % n for n in range(1, 10))
        for name in set(ends) - {"stdout"}:
            os.close(ends[name])
        await it.until(lambda: it.output("t").count(b"got ") == 10)
        statuses = {}
        while len(statuses) < 11:
            name, status, _, exec_id = await asyncio.wait_for(it.exits.get(), 60)
            if exec_id is None:
                statuses[name] = status
        assert statuses == {"w": 7 << 8, **{f"s{n}": n << 8 for n in range(10)}}
        await it.link.drain("w")
        assert it.output("w") == numbered()
        await it.link.signal("t", 9)

    in_instance(tmp_path, work)
