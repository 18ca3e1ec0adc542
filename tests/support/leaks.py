"""What an instance may have on the host, and what of it belongs to nobody: the leak inspector.

`found(root, run)` looks at an instance in which nothing is under way: processes, mounts, control groups, links,
nft elements, loop devices, the image store, the holder's descriptors, folders, journal, zone: each must belong to
a workload that its database calls alive (or to the instance itself). `left(…)` looks at a host from which the
instance is gone. Both give sentences; none is good. Everything is read from the host and the files, never asked
of the engine. Out of scope: waiting until nothing is under way (`quiet` polls for it).
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from knarr.keeper import journal, processes
from knarr.keeper.holder import HolderClient
from knarr.model.errors import KnarrError
from support import storeleaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ALIVE = ("starting", "running", "paused", "stopping")
_OF_INSTANCE = ("mnt", "ro", "lock", "lock/instance", "served", "lock/network")
_LOCKS = "/run/lock/knarr"


@dataclass
class View:
    """One look at an instance's host."""

    root: str
    run: str
    instance: str
    states: dict[str, dict[str, Any]]
    """the database's workloads: id → state"""
    roles: dict[str, int]
    held: list[str]
    holder: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def alive(self) -> set[str]:
        return {key for key, state in self.states.items() if state["status"] in _ALIVE}

    def tell(self, what: str, names: object) -> None:
        self.found += [f"{what}: {name}" for name in sorted(names)]  # type: ignore[call-overload]


def found(root: str, run: str) -> list[str]:
    """What belongs to nobody in an instance that runs; it must be quiet."""
    view = _view(root, run)
    for look in (_processes, _groups, _links, _elements, _names, _journal, _folders, _mounts, _zone):
        look(view)
    store = os.path.join(root, "images", "default")
    # before Linux 6.12 an image's mount has two
    used = (f"{store}/pool", *(f"{store}/trees/{name}.erofs" for name in storeleaks.trees(store)))
    loops = [text for text in _loops(root) if not text.endswith(used)]
    return view.found + loops + storeleaks.found(store)


def quiet(root: str, run: str, timeout: float = 15.0) -> None:
    """Fail with the list if something that belongs to nobody stays."""
    end = time.monotonic() + timeout
    while True:
        try:
            leaks = found(root, run)
        except (OSError, KnarrError, sqlite3.Error) as error:
            leaks = [f"could not look: {error!r}"]
        if not leaks:
            return
        assert time.monotonic() < end, "left behind:\n" + "\n".join(leaks)
        time.sleep(0.2)


def left(root: str, run: str, instance: str) -> list[str]:
    """What is on the host of an instance that was stopped for good."""
    leaks = [f"process {pid}: {text}" for pid, text in _commands() if root in text or run in text]
    leaks += [f"mount: {point}" for point in _mount_points("self") if _within(point, root, run)]
    leaks += [f"control group: {path}" for path in glob.glob(f"/sys/fs/cgroup/*/knarr_{instance}")]
    leaks += [f"control group: {path}" for path in glob.glob(f"/sys/fs/cgroup/knarr_{instance}")]
    leaks += [f"link: {name}" for name in os.listdir("/sys/class/net") if name.startswith(f"kn{instance}")]
    leaks += [
        f"nft table: {kind} knarr_{instance}"
        for kind in ("ip", "bridge")
        if _has_table(kind, f"knarr_{instance}")
    ]
    for path in (*glob.glob(f"{_LOCKS}/pool-*"), *glob.glob(f"{_LOCKS}/ids-*")):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            if file.read() == instance:
                leaks.append(f"claim: {path}")
    return leaks + _loops(root)


def gone(root: str, run: str, instance: str, timeout: float = 10.0) -> None:
    """Fail with the list if a stopped instance has left something."""
    end = time.monotonic() + timeout
    while leaks := left(root, run, instance):
        assert time.monotonic() < end, "left on the host:\n" + "\n".join(leaks)
        time.sleep(0.2)


def complaint(look: Callable[..., None], *arguments: str) -> str:
    """What `quiet` or `gone` says, for those who have to clean up before they fail."""
    try:
        look(*arguments)
    except AssertionError as error:
        return str(error)
    return ""


def descriptors(run: str) -> dict[str, int]:
    """Open descriptors by role, the holder's own as `holder`."""
    view = _roles(run)
    return {name: len(_fds(pid)) for name, pid in {**view[0], "holder": view[1]}.items() if pid}


def instance_of(root: str) -> str:
    try:
        with open(os.path.join(root, "instance"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


# the instance


def _view(root: str, run: str) -> View:
    roles, holder, held = _roles(run)
    return View(
        root=root,
        run=run,
        instance=instance_of(root),
        states=_states(root),
        roles=roles,
        held=held,
        holder=holder,
    )


def _roles(run: str) -> tuple[dict[str, int], int, list[str]]:
    with contextlib.closing(HolderClient(run)) as holder:
        roles, held = holder.roles(), holder.list()
    pid = next((_parent(pid) for pid in roles.values() if pid), 0)
    return roles, pid, held


def _states(root: str) -> dict[str, dict[str, Any]]:
    path = os.path.join(root, "knarr.db")
    if not os.path.exists(path):
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return {key: json.loads(state) for key, state in db.execute("SELECT id, state FROM workloads")}


def _processes(view: View) -> None:
    """Every process below the holder is a role, or stands in the control group of one that is alive.

    One that has ended and that its workload's own process 1 does not reap is the workload's affair.
    """
    ours = {view.holder, *view.roles.values()}
    for pid in _below(view.holder):
        if pid in view.roles.values() or (_is_zombie(pid) and _parent(pid) not in ours):
            continue
        text = _read(f"/proc/{pid}/cgroup")
        groups = set(re.findall(rf"/knarr_{view.instance}/([^/\n]+)", text))
        if not text or any(name.partition(".")[0] in view.alive for name in groups):
            continue
        view.tell(
            "process", [f"{pid} of {_parent(pid)} {_state(pid)} {_command(pid)} in {groups or 'no group'}"]
        )


def _groups(view: View) -> None:
    for folder in glob.glob(f"/sys/fs/cgroup/*/knarr_{view.instance}") + glob.glob(
        f"/sys/fs/cgroup/knarr_{view.instance}"
    ):
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        view.tell(
            "control group",
            [f"{folder}/{name}" for name in names if name.partition(".")[0] not in view.alive],
        )


def _links(view: View) -> None:
    """A port is a living workload's, or a slot that the daemon has ready (a namespace descriptor of its)."""
    there = {name for name in os.listdir("/sys/class/net") if name.startswith(f"kn{view.instance}p")}
    taken = {_attachment(view, key).get("link", "") for key in view.alive}
    daemon = view.roles.get("daemon", 0)
    spaces = {target for target in _fds(daemon).values() if target.startswith("net:")}
    spaces.discard(_link(f"/proc/{daemon}/ns/net"))
    free = there - taken
    if len(free) > len(spaces):
        view.tell("link", [f"{name} of {len(free)} beside {len(spaces)} slots" for name in free])
    view.tell("link that should be there", taken - there - {""})


def _attachment(view: View, key: str) -> dict[str, Any]:
    return view.states[key].get("attachment") or {}


def _elements(view: View) -> None:
    sources = {item["concat"][0] for item in _set(view, "bridge", "sources")}
    there = set(os.listdir("/sys/class/net"))
    view.tell("nft source", sources - there)
    view.tell(
        "nft source missing", {_attachment(view, key).get("link", "") for key in view.alive} - sources - {""}
    )
    led = {item[1]["concat"][0] for name in ("published", "published_at") for item in _set(view, "ip", name)}
    view.tell("nft publication", led - {_attachment(view, key).get("address") for key in view.alive})


def _set(view: View, family: str, name: str) -> list[Any]:
    command = [
        "nft",
        "-j",
        "list",
        "set" if name == "sources" else "map",
        family,
        f"knarr_{view.instance}",
        name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        return []
    items = json.loads(done.stdout)["nftables"]
    return next((item[kind].get("elem", []) for item in items for kind in ("set", "map") if kind in item), [])


def _names(view: View) -> None:
    """The holder's descriptors."""
    ports = {
        f"sock/port/{port['protocol']}/{port.get('host_ip') or '0.0.0.0'}:{port['host_port']}"
        for key in view.alive
        for port in view.states[key].get("ports", ())
    }
    for name in view.held:
        kind, _, rest = name.partition("/")
        if name in _OF_INSTANCE or name in ports or kind in ("dns", "lock", "sock"):
            if name.startswith("sock/port/") and name not in ports:
                view.tell("descriptor", [name])
        elif rest.partition("/")[0].partition(".")[0] not in view.alive:
            view.tell("descriptor", [name])
    view.tell("dns socket", [name for name in view.held if name.startswith("dns/")][2:])


def _journal(view: View) -> None:
    data = _bytes(os.path.join(view.run, "keeper.journal"))
    entries, intents, _ = journal.replay(data, processes.boot_id())
    view.tell("intent", intents)
    view.tell(
        "journal entry", [key for key in entries if key.partition("/")[0].partition(".")[0] not in view.alive]
    )
    dead = [key for key, entry in entries.items() if "/" not in key and not processes.alive(entry)]
    view.tell("journal entry without a process", dead)


def _folders(view: View) -> None:
    view.tell(
        "folder without a record", set(os.listdir(os.path.join(view.root, "workloads"))) - view.states.keys()
    )
    view.tell(
        "temporary file",
        [
            path
            for pattern in (
                "volumes/.*", "volumes/*/copying", "volumes/*/fresh", "workloads/*/image-root", "workloads/*/empty-*",
                "kernels/*.new*", "templates/.*",
            )
            for path in glob.glob(os.path.join(view.root, pattern))
        ],
    )  # fmt: skip
    view.tell("temporary file", glob.glob(os.path.join(view.run, "**/*.new"), recursive=True))
    links = (
        os.listdir(os.path.join(view.run, "logs")) if os.path.isdir(os.path.join(view.run, "logs")) else []
    )
    view.tell("log link", [name for name in links if name.partition(".")[0] not in view.alive])


def _mounts(view: View) -> None:
    """The keeper's namespace has one mount per image in use; the host's none."""
    trees = storeleaks.trees(os.path.join(view.root, "images", "default"))
    for point in _mount_points(str(view.roles.get("keeper", 0))):
        if _within(point, view.run) and os.path.basename(point) not in trees:
            view.tell("mount", [point])
    view.tell("mount of the host", [point for point in _mount_points("self") if _within(point, view.run)])


def _zone(view: View) -> None:
    named: set[str] = set()
    for line in _read(os.path.join(view.run, "dns", "zone")).splitlines():
        match line.split(" "):
            case ["+", key, *_]:
                named.add(key)
            case ["-", key]:
                named.discard(key)
    view.tell("name in the zone", named - view.alive)


# the host


def _loops(root: str) -> list[str]:
    there = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        target = _read(path).strip()
        if target.startswith(root):
            there.append(f"loop device: {path.split('/')[3]} on {target}")
    return there


def _has_table(family: str, name: str) -> bool:
    # one table only: to list all of them costs seconds on a host with many elements of others
    command = ["nft", "list", "table", family, name]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def _mount_points(process: str) -> list[str]:
    return [line.split(" ")[4] for line in _read(f"/proc/{process}/mountinfo").splitlines()]


def _within(point: str, *folders: str) -> bool:
    return any(point.startswith(folder + "/") for folder in folders)


def _below(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(_parent(int(name)), []).append(int(name))
    waiting = [pid] if pid else []
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            yield child


def _parent(pid: int) -> int:
    text = _read(f"/proc/{pid}/stat")
    return int(text[text.rindex(")") + 2 :].split()[1]) if text else 0


def _state(pid: int) -> str:
    text = _read(f"/proc/{pid}/stat")
    return text[text.rindex(")") + 2] if text else ""


def _is_zombie(pid: int) -> bool:
    return _state(pid) == "Z"


def _commands() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and (text := _command(int(name))):
            yield int(name), text


def _command(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ")[:300]


def _fds(pid: int) -> dict[str, str]:
    folder = f"/proc/{pid}/fd"
    try:
        return {name: _link(f"{folder}/{name}") for name in os.listdir(folder)}
    except OSError:
        return {}


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
