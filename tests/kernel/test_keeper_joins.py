"""The keeper's part of joined namespaces and of user namespaces: who is joined is the workload, not its number."""

from __future__ import annotations

import os

import pytest

from kernel.keeper_tools import ENV, in_instance, needs_root
from knarr.keeper import processes
from knarr.keeper.journal import Entry
from knarr.keeper.link import KeeperError
from knarr.kernel import namespaces, process
from knarr.kernel.namespaces import CLONE_NEWNS, CLONE_NEWPID
from knarr.kernel.plan import Plan
from knarr.kernel.steps import CgroupCreate, MakePrivate
from knarr.model.namespaces import IdMap

pytestmark = needs_root
JOINER = Plan(join="join-pid", argv=("/bin/sh", "-c", "exit $(( $$ == 1 ))"), env=ENV)


def donor(script="sleep 1000", **more):
    return Plan(
        clone_flags=CLONE_NEWPID | CLONE_NEWNS,
        inside=(MakePrivate(),),
        argv=("/bin/sh", "-c", script),
        env=ENV,
        **more,
    )


def test_a_start_is_born_in_the_joined_pid_namespace_and_never_in_a_dead_ones(tmp_path):
    async def work(it):
        await it.link.start("donor", donor(), {}, {})
        await it.link.start("guest", JOINER, {}, {}, {"join-pid": "donor"})
        assert await it.exit_of("guest") == 0
        await it.link.forget("guest")
        await it.link.signal("donor", 9)
        await it.exit_of("donor")
        for who in ("donor", "nobody"):
            with pytest.raises(KeeperError, match="does not run"):
                await it.link.start("guest", JOINER, {}, {}, {"join-pid": who})
        assert "guest" not in (await it.link.list())[0]

    in_instance(tmp_path, work)


def test_a_later_process_with_the_same_number_is_not_the_workload():
    entry = Entry("w", os.getpid(), process.start_time(os.getpid()) - 1, [], [])
    with pytest.raises(ProcessLookupError):
        processes.open_process(entry)


def test_what_shares_a_pid_namespace_leaves_no_process_in_its_group(tmp_path):
    group = f"/sys/fs/cgroup/pids/knarr_test_joins_{os.getpid()}"
    if not os.path.isdir("/sys/fs/cgroup/pids"):
        group = f"/sys/fs/cgroup/knarr_test_joins_{os.getpid()}"

    async def work(it):
        script = (
            f"mkdir {group}/below; echo 0 >{group}/below/cgroup.procs; sleep 4242 &"
            f" echo $! >{tmp_path}/child; exit 0"
        )
        plan = Plan(outside=(CgroupCreate(groups=(group,)),), argv=("/bin/sh", "-c", script), env=ENV)
        await it.link.start("w", plan, {}, {})
        await it.exit_of("w")
        child = int((tmp_path / "child").read_text())
        assert os.path.exists(f"/proc/{child}")
        await it.link.forget("w")
        await it.until(lambda: not os.path.exists(f"/proc/{child}"))
        assert not os.path.exists(group)

    in_instance(tmp_path, work)


def test_a_user_namespace_lives_by_its_descriptor(tmp_path):
    async def work(it):
        wanted = IdMap(uids=((0, 500000, 1000),), gids=((0, 600000, 10), (10, 700000, 5)))
        fds = await it.link.user_namespace(wanted, network=True)
        try:
            pid = os.fork()
            if pid == 0:
                namespaces.setns(fds["userns"], namespaces.CLONE_NEWUSER)
                with open("/proc/self/gid_map", encoding="ascii") as file:
                    rows = [line.split() for line in file]
                os._exit(0 if rows == [["0", "600000", "10"], ["10", "700000", "5"]] else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert set(fds) == {"userns", "netns"}
        finally:
            for fd in fds.values():
                os.close(fd)
        with pytest.raises(KeeperError):
            await it.link.user_namespace(IdMap(uids=((0, 0, 1), (0, 5, 1)), gids=()), network=False)
        assert (await it.link.list()) == ({}, {})

    in_instance(tmp_path, work)
