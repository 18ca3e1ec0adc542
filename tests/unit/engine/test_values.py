from __future__ import annotations

import asyncio

import pytest

from knarr.engine import records, validate, views
from knarr.engine.driver import Workload
from knarr.engine.events import EventLog
from knarr.engine.table import Entry, Table
from knarr.model.errors import Conflict, Invalid, NotFound
from knarr.model.resource import Attachment, Image, ImageConfig, RootFs
from knarr.model.state import Status
from knarr.model.workload import (
    Isolation,
    Mount,
    MountKind,
    PortMapping,
    Process,
    Resources,
    Rlimit,
    Security,
    WorkloadSpec,
)
from knarr.store.db import Database


def image() -> Image:
    rootfs = RootFs(tree_id="t", tree="/t", pool="/p", disk_map="/m")
    return Image(
        id="sha256:" + "a" * 64,
        digest="sha256:" + "b" * 64,
        references=("docker.io/library/debian:bookworm",),
        created="",
        size=1,
        rootfs=rootfs,
        config=ImageConfig(labels={"from": "image"}, volumes=("/v",)),
    )


def workload(number: int = 1, **fields) -> Workload:
    spec = WorkloadSpec(
        image="debian:bookworm",
        labels={"a": "b"},
        mounts=(Mount(kind=MountKind.TMPFS, target="/t"),),
        resources=Resources(memory=1 << 30, cpus=0.5),
        isolation=Isolation.MICROVM,
    )
    given = {
        "id": f"{number:x}".rjust(2, "f").ljust(64, "0"),
        "name": f"name{number}",
        "spec": spec,
        "image": image(),
        "process": Process(args=("sh", "-c", "é\udcff"), env=("A=b",)),
        "hostname": "h",
        "dir": "/w",
        "mounts": spec.mounts,
        "created": number,
    }
    return Workload(**{**given, **fields})


def test_records_come_back_whole():
    w = workload(process=Process(args=("sh",), env=("A=b",)))
    w.status = Status.RUNNING
    w.attachment = Attachment(
        address="10.0.0.2", prefix=16, gateway="10.0.0.1", mac="m", bridge="b", link="l"
    )
    w.ports = (PortMapping(container_port=80, host_port=8080),)
    w.private = {"uid": 5, "nested": {"a": [1]}}
    back = records.decode(w.id, w.name, w.dir, records.encode_fixed(w), records.encode_state(w))
    for name in Workload.__slots__:
        assert getattr(back, name) == getattr(w, name), name


def test_inspect_shows_plain_values():
    document = views.inspect(workload())
    assert document["spec"]["isolation"] == "microvm"
    assert document["labels"] == {"from": "image", "a": "b"}
    assert document["pid"] == 0


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], True),
        (["name=ame1"], True),
        (["label=a=b"], True),
        (["label=a"], True),
        (["label=a=c"], False),
        (["label=from=image"], True),
        (["ancestor=debian:bookworm"], True),
        (["ancestor=aaaa"], True),
        (["status=created"], True),
        (["status=running", "status=created"], True),
        (["status=running"], False),
        (["isolation=container"], False),
    ],
)
def test_filters(filters, found):
    assert views.matches(workload(), views.parse_filters(filters, str)) is found


@pytest.mark.parametrize("text", ["x", "x=1", "=1"])
def test_bad_filters(text):
    with pytest.raises(Invalid):
        views.parse_filters([text], str)


def test_table_finds_by_id_name_and_unique_beginning():
    async def check():
        table = Table()
        one, two = Entry(workload(1)), Entry(workload(2))
        table.add(one)
        table.add(two)
        assert table.find("name1") is one
        assert table.find(two.w.id) is two
        assert table.find("f2") is two
        with pytest.raises(Conflict, match="2 ids"):
            table.find("f")
        for missing in ("x", "", "name"):
            with pytest.raises(NotFound):
                table.find(missing)
        table.discard(one)
        with pytest.raises(NotFound):
            table.find("name1")

    asyncio.run(check())


def test_waiters_learn_of_exit_and_removal():
    async def check():
        entry = Entry(workload())
        first, gone, cancelled = entry.next_exit(), entry.removal(), entry.next_exit()
        cancelled.cancel()
        entry.w.exit_code = 7
        entry.tell_exit()
        assert (await first).code == 7
        assert not gone.done()
        late = entry.next_exit()
        entry.tell_removal()
        assert (await gone).code == (await late).code == 7

    asyncio.run(check())


BAD = [
    ({"name": "-x"}, Invalid),
    ({"hostname": "a b"}, Invalid),
    ({"stop_signal": "FOO"}, Invalid),
    ({"stop_timeout": -2}, Invalid),
    ({"resources": Resources(memory=1000)}, Invalid),
    ({"resources": Resources(cpus=1e5)}, Invalid),
    ({"resources": Resources(cpuset="a")}, Invalid),
    ({"resources": Resources(pids=0)}, Invalid),
    ({"rlimits": (Rlimit(name="foo", soft=1, hard=1),)}, Invalid),
    ({"rlimits": (Rlimit(name="nofile", soft=2, hard=1),)}, Invalid),
    ({"rlimits": (Rlimit(name="nofile", soft=-1, hard=1),)}, Invalid),
    ({"ports": (PortMapping(container_port=0),)}, Invalid),
    ({"ports": (PortMapping(container_port=1, protocol="sctp"),)}, Invalid),
    (
        {"ports": (PortMapping(container_port=1, host_port=5), PortMapping(container_port=2, host_port=5))},
        Invalid,
    ),
    ({"security": Security(seccomp="mine")}, Invalid),
    ({"mounts": (Mount(kind=MountKind.BIND, target="/a", source="rel"),)}, Invalid),
    ({"mounts": (Mount(kind=MountKind.BIND, target="a", source="/x"),)}, Invalid),
    ({"mounts": (Mount(kind=MountKind.BIND, target="/a", source="/x", options=("shared", "foo")),)}, Invalid),
    ({"mounts": (Mount(kind=MountKind.TMPFS, target="/a", options=("size=x",)),)}, Invalid),
    ({"mounts": (Mount(kind=MountKind.TMPFS, target="/a/../proc"),)}, Invalid),
    (
        {"mounts": (Mount(kind=MountKind.TMPFS, target="/a"), Mount(kind=MountKind.TMPFS, target="//a/"))},
        Invalid,
    ),
    ({"mounts": (Mount(kind=MountKind.VOLUME, target="/a", source="../v"),)}, Invalid),
]


@pytest.mark.parametrize(("fields", "kind"), BAD)
def test_bad_specs(fields, kind):
    with pytest.raises(kind):
        validate.spec(WorkloadSpec(image="i", **fields))


def test_mounts_are_cleaned_and_sorted():
    mounts = (
        Mount(kind=MountKind.TMPFS, target="/a/b"),
        Mount(kind=MountKind.BIND, target="//a/", source="/x/../y"),
    )
    clean = validate.spec(WorkloadSpec(image="i", mounts=mounts)).mounts
    assert [(mount.target, mount.source) for mount in clean] == [("/a", "/y"), ("/a/b", None)]


def test_events_past_and_coming(tmp_path):
    async def check():
        db = Database(str(tmp_path / "db"))
        log = EventLog(db)
        log.emit("workload", "create", "x", {"n": "1"})
        got = []

        async def follow():
            async for event in log.read(0, None, follow=True):
                got.append(event.action)
                if event.action == "die":
                    return

        task = asyncio.ensure_future(follow())
        await asyncio.sleep(0)
        log.emit("workload", "start", "x", {})
        log.emit("workload", "die", "x", {})
        await asyncio.wait_for(task, 5)
        assert got == ["create", "start", "die"]
        assert [e.action async for e in log.read(0, None, follow=False)] == ["create", "start", "die"]
        assert [e async for e in log.read(None, 1, follow=True)] == []
        assert not log.followers
        db.close()

    asyncio.run(check())


def test_a_relative_working_directory_of_the_users_is_refused() -> None:
    with pytest.raises(Invalid, match="'app' is not absolute"):
        validate.spec(WorkloadSpec(image="i", workdir="app"))
