"""A real guest: one machine for all cases, its agent driven by the daemon's own client, without keeper and jail."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import tarfile
from contextlib import asynccontextmanager

import pytest

from knarr.images.archives import open_archive
from knarr.images.store import ImageStore
from knarr.kernel import facts
from knarr.machines import disks, request, status
from knarr.machines.kernels import KernelStore
from knarr.model.errors import Failed, Invalid, KnarrError, NotFound
from knarr.model.workload import Resources
from support import vm
from support.images import busybox_archive

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="power missing: root (to format disks with any owner)"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="power missing: no qemu-system-x86_64"
    ),
]
BOOT_SECONDS = 60


class Shared:
    """Kernel, image and a disk template for all cases."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.root = os.path.join(folder, "root")
        kept = os.environ.get("KNARR_TEST_KERNELS", "/var/tmp/knarr-test-kernels")
        try:
            self.kernel = KernelStore(kept, facts.native_program("agent")).fetch()
        except KnarrError as error:
            pytest.skip(f"power missing: no kernel package can be fetched: {error.message}")
        archive = os.path.join(folder, "busybox.tar")
        busybox_archive(archive)
        os.makedirs(self.root)
        store = ImageStore(os.path.join(self.root, "images"))
        with open_archive(archive, folder) as sources:
            rootfs = store.ingest(sources[0]).rootfs
        self.disks = {"tree": rootfs.tree, "map": store.disk_map(rootfs), "pool": rootfs.pool}
        store.close()

    @asynccontextmanager
    async def machine(self, *args: str, wait=True, guest=None, **more):
        upper = os.path.join(self.folder, f"upper-{os.urandom(4).hex()}")
        disks.make_upper(self.root, upper)
        keys = ("stdin", "tty", "resources")
        machine = vm.Machine(
            self.kernel, self.disks, upper, **{key: more[key] for key in keys if key in more}
        )
        agent = machine.agent()
        try:
            program = vm.process(*args, tty=more.pop("tty", False), **more.pop("process", {}))
            agent.start(guest or vm.records(program, **more))
            await agent.hello(BOOT_SECONDS)
            if wait:
                await agent.started()
            yield machine, agent
        finally:
            agent.close()
            machine.close()
            os.unlink(upper)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Shared(str(tmp_path_factory.mktemp("vm")))


async def run(agent, *args, stdin=b"", **more):
    """(exit code, out, err) of an exec."""
    program = vm.process(*args, **more)
    records = (*request.process_records(program, vm.MASK, b""), ("stdin", b"1"))
    session = await agent.exec(records)
    found = {1: b"", 2: b""}

    async def feed():
        await session.write(stdin)
        await session.close_stdin()

    feeding = asyncio.ensure_future(feed())
    while (item := await session.read()) is not None:
        found[item[0]] += item[1]
    await feeding
    code = await session.wait()
    await session.close()
    return code, found[1], found[2]


def told(machine):
    return status.parse(machine.text("status").encode())


async def finish(machine, agent):
    ended = await asyncio.wait_for(asyncio.shield(agent.ended), 30)
    agent.power_off()
    await machine.exited()
    return ended


async def exec_cases(agent):
    assert await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert (await run(agent, "hostname"))[1] == b"box\n"
    assert (await run(agent, "sh", "-c", "kill -9 $$"))[0] == 137
    assert (await run(agent, "id", "-un", user="alice"))[1] == b"alice\n"
    assert (await run(agent, "sh", "-c", "echo $HOME $PWD", user="alice", cwd="/tmp"))[
        1
    ] == b"/home/alice /tmp\n"
    for program, code in (("nosuch", 127), ("/etc/passwd", 126)):
        with pytest.raises(Failed) as caught:
            await run(agent, program)
        assert caught.value.exit_code == code
    with pytest.raises(Failed, match="unable to find user nobodyhere"):
        await run(agent, "true", user="nobodyhere")


async def stream_cases(agent):
    data = os.urandom(700_000)
    assert (await run(agent, "cat", stdin=data))[1] == data
    several = await asyncio.gather(*(run(agent, "sh", "-c", f"sleep 0.2; echo {n}") for n in range(5)))
    assert [item[1] for item in several] == [b"%d\n" % n for n in range(5)]
    # one that is not read holds nobody else up
    records = request.process_records(vm.process("yes"), vm.MASK, b"")
    idle = await agent.exec(records)
    assert (await run(agent, "echo", "on"))[1] == b"on\n"
    await idle.signal(9)
    await idle.close()
    # what an ended process leaves behind does not keep its exec open
    assert (await run(agent, "sh", "-c", "sleep 100 & echo left"))[1] == b"left\n"


async def archive_cases(agent):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("dir/" + "n" * 150)
        entry.size, entry.mode, entry.uid, entry.mtime = 3, 0o640, 1000, 1_500_000_000.25
        entry.pax_headers = {"SCHILY.xattr.user.colour": "red"}
        tar.addfile(entry, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("dir/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pieces = [packed.getvalue(), b""]
    await agent.unpack("/tmp", lambda: _later(pieces.pop(0)))
    size, mode, mtime, *_ = await agent.stat_path("/tmp/dir/" + "n" * 150)
    assert (size, oct(mode), mtime) == (3, "0o100640", 1_500_000_000_250_000_000)
    assert (await agent.stat_path("/tmp/dir/link"))[3:] == ("link", "/etc/passwd")
    back = bytearray()

    async def keep(data):
        back.extend(data)

    await agent.archive("get", "/tmp/dir", keep)
    with tarfile.open(fileobj=io.BytesIO(bytes(back))) as tar:
        found = {item.name: item for item in tar}
        assert sorted(found) == ["dir", "dir/link", "dir/" + "n" * 150]
        regular = found["dir/" + "n" * 150]
        assert (regular.mode, regular.uid, regular.mtime) == (0o640, 1000, 1_500_000_000.25)
        assert regular.pax_headers["SCHILY.xattr.user.colour"] == "red"
        assert tar.extractfile(regular).read() == b"abc"
    with pytest.raises(NotFound):
        await agent.stat_path("/nowhere")
    hostile = [b"not a tar archive" * 100, b""]
    with pytest.raises(Invalid, match="checksum"):
        await agent.unpack("/tmp", lambda: _later(hostile.pop(0)))


async def _later(data):
    return data


async def takeover_cases(machine, agent):
    """A second daemon: an exec of the first is let go, the workload and new execs go on."""
    records = request.process_records(
        vm.process("sh", "-c", "sleep 1; echo yes > /tmp/survived"), vm.MASK, b""
    )
    await agent.exec(records)
    agent.close()
    following = machine.agent()
    assert (await following.hello(10)).name == "RUNNING"
    await asyncio.sleep(1.5)
    assert (await run(following, "cat", "/tmp/survived"))[1] == b"yes\n"
    return following


def test_one_machine_does_everything(shared):
    async def main():
        async with shared.machine(
            "sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done"
        ) as (box, agent):
            await exec_cases(agent)
            await stream_cases(agent)
            await archive_cases(agent)
            counters = await agent.ask("stats")
            assert int(counters["memory"]) > 0
            assert int(counters["pids"]) >= 1
            following = await takeover_cases(box, agent)
            following.signal(15)
            ended = await finish(box, following)
            assert ended["code"] == b"5"
            assert box.output() == b"bye\n"
            assert told(box).exit_code == 5

    asyncio.run(main())


def test_a_terminal_in_the_guest(shared):
    async def main():
        async with shared.machine("sh", tty=True, stdin=True) as (box, agent):
            agent.resize(91, 33)
            box.feed(b"stty size; tty; exit 3\n")
            assert (await finish(box, agent))["code"] == b"3"
            assert b"33 91\r\n/dev/pts/0" in box.output()

    asyncio.run(main())


def test_output_of_an_ended_machine_waits_for_a_slow_reader(shared):
    """More than pipe and port hold, nobody reading: nothing is lost, the exit is known before."""

    async def main():
        async with shared.machine("sh", "-c", "yes 0123456 | head -c 400000; exit 4", wait=False) as (
            box,
            agent,
        ):
            await asyncio.sleep(1.0)
            output = b""
            while len(output) < 400_000:
                output += box.output()
                await asyncio.sleep(0.01)
            assert output == b"0123456\n" * 50_000
            assert (await finish(box, agent))["out"] == b"400000"
            assert told(box).exit_code == 4

    asyncio.run(main())


def test_memory_limit_is_the_workloads(shared):
    async def main():
        limits = Resources(memory=24 << 20, pids=20)
        async with shared.machine("tail", "/dev/zero", resources=limits) as (box, agent):
            assert (await finish(box, agent))["code"] == b"137"
            assert told(box).oom

    asyncio.run(main())


def test_a_program_that_is_not_there(shared):
    async def main():
        async with shared.machine("nosuch", wait=False) as (box, agent):
            with pytest.raises(Failed) as caught:
                await agent.started()
            assert caught.value.exit_code == 127
            await box.exited()
            assert told(box).failure[0] == 127

    asyncio.run(main())


def test_the_disk_shows_no_byte_of_another_image(shared):
    """The map that a guest gets leads only to its image's own part of the pool."""
    with open(shared.disks["pool"], "ab") as pool:
        pool.write(b"SECRET-OF-ANOTHER-IMAGE" * 200)
    seen = os.path.join(shared.folder, "seen")
    nodes = {
        "driver": "qcow2",
        "file.filename": shared.disks["map"],
        "data-file.filename": shared.disks["pool"],
    }
    source = f"json:{json.dumps(nodes)}"
    subprocess.run(("qemu-img", "convert", "-O", "raw", source, seen), check=True)
    with open(seen, "rb") as file:
        assert b"SECRET-OF-ANOTHER-IMAGE" not in file.read()


def test_an_agent_without_workload_serves_archives_and_ends(shared):
    async def main():
        async with shared.machine(guest=request.idle_records(time_ns=0, seed=bytes(64))) as (box, agent):
            assert (await agent.stat_path("/etc/passwd"))[3] == "passwd"
            agent.signal(15)
            assert await box.exited() == 0

    asyncio.run(main())
