"""Containers without an engine: a busybox folder as the image, the keeper's own launch code, no keeper."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace

from knarr.containers import plan as planner
from knarr.keeper.launch import Launch, Streams, undo
from knarr.kernel import cgroups, facts, skeleton, steps
from knarr.kernel.plan import Context, Plan, from_json, to_json
from knarr.model.resource import RootFs
from knarr.model.workload import NetworkMode, Process, Security

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSTANCE = f"t{os.getpid():x}"


@dataclass
class Result:
    code: int
    out: str
    err: str
    failure: object = None


def busybox_tree(folder: str) -> str:
    for name in ("bin", "etc", "tmp", "root", "var/lib"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    shutil.copy("/bin/busybox", f"{folder}/bin/busybox")
    for name in subprocess.run(
        ["/bin/busybox", "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if name != "busybox":
            os.symlink("busybox", f"{folder}/bin/{name}")
    with open(f"{folder}/etc/passwd", "w", encoding="ascii") as file:
        file.write("root:x:0:0:root:/root:/bin/sh\nsam:x:1000:1001:Sam:/home/sam:/bin/sh\n")
    with open(f"{folder}/etc/group", "w", encoding="ascii") as file:
        file.write("root:x:0:\nsam:x:1001:\nwheel:x:10:root,sam\nvideo:x:44:sam\n")
    os.chmod(f"{folder}/tmp", 0o1777)
    return folder


class Box:
    """One workload's folders on a temporary RUN and ROOT, and launches in it."""

    def __init__(self, base: str, tree: str, name: str = "box") -> None:
        self.run = f"{base}/run"
        self.dir = f"{base}/{name}"
        self.id = name
        os.makedirs(f"{self.run}/images", exist_ok=True)
        skeleton.make(self.run)
        for folder in ("upper", "work"):
            os.makedirs(f"{self.dir}/{folder}", exist_ok=True)
        if not os.path.exists(f"{self.run}/images/tree"):
            os.symlink(tree, f"{self.run}/images/tree")
        self.facts = facts.probe()
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def given(self, *args: str, **changes) -> planner.ContainerInput:
        security = changes.get("security", Security())
        process = Process(
            args=args,
            env=(PATH, *changes.pop("env", ())),
            capabilities=planner.capabilities_for(security),
            seccomp=not security.privileged,
            **{key: changes.pop(key) for key in tuple(changes) if key in Process.__dataclass_fields__},
        )
        values = {
            "id": self.id,
            "instance": INSTANCE,
            "run": self.run,
            "dir": self.dir,
            "rootfs": RootFs(tree_id="tree", tree="", pool="", disk_map=""),
            "process": process,
            "hostname": "boxhost",
            "facts": self.facts,
            "network": NetworkMode.NONE,
        }
        return planner.ContainerInput(**(values | changes))

    def plan(self, given: planner.ContainerInput) -> Plan:
        made = planner.plan(given)
        kept = tuple(step for step in made.outside if not isinstance(step, steps.MountImage))
        # through JSON, as the keeper gets it
        return from_json(to_json(replace(made, outside=kept)))

    def start(self, given: planner.ContainerInput, **more) -> Running:
        return Running(self, self.plan(given), **more)

    def sh(self, script: str, **changes) -> Result:
        return self.call("sh", "-c", script, **changes)

    def call(self, *args: str, **changes) -> Result:
        stdin = changes.pop("stdin", None)
        with contextlib.closing(self.start(self.given(*args, **changes), stdin=stdin)) as running:
            return running.finish()

    def close(self) -> None:
        os.close(self.null)


class Running:
    """A launch and its streams; `finish` reads everything and reaps."""

    def __init__(
        self,
        box: Box,
        plan: Plan,
        *,
        stdin: bytes | None = None,
        join: int | None = None,
        fds: dict[str, int] | None = None,
    ) -> None:
        self.box = box
        self.plan = plan
        self.master = -1
        streams = Streams()
        tty = any(isinstance(step, steps.Pty) for step in plan.inside)
        if not tty:
            if stdin is not None:
                streams.pipe_in("stdin", "in")
            streams.pipe_out("stdout", "out")
            streams.pipe_out("stderr", "err")
        self.kept = streams.kept
        context = Context(run=box.run, fds=streams.child | (fds or {}))
        if join is not None:
            context.fds["pidfd"] = os.pidfd_open(join)
        self.context = context
        self.launch = Launch(plan, context, streams)
        self.launch.begin(box.null, pid_namespace=context.fds.get("pidfd"))
        self.launch.go()
        self._talk()
        self.pid = self.launch.pid
        if stdin is not None:
            os.write(self.kept["in"], stdin)
            os.close(self.kept.pop("in"))

    def _talk(self) -> None:
        while True:
            select.select([self.launch.channel], [], [], 20)
            found = self.launch.read()
            if found is None:
                return
            self.master = found[0][1]
            self.launch.kept()

    def exec(self, process: Process, given: planner.ContainerInput, stdin: bytes | None = None) -> Running:
        made = planner.plan_exec(given, process, self.pid)
        return Running(self.box, from_json(to_json(made)), stdin=stdin, join=self.pid)

    def finish(self, seconds: float = 20) -> Result:
        taken = dict.fromkeys(("out", "err"), b"")
        waiting = {fd: name for name, fd in self.kept.items()}
        if self.master >= 0:
            waiting[self.master] = "out"
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            for fd in select.select(list(waiting), [], [], 1)[0]:
                try:
                    data = os.read(fd, 65536)
                except OSError:
                    data = b""
                if not data:
                    del waiting[fd]
                else:
                    taken[waiting[fd]] += data
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return Result(
            os.waitstatus_to_exitcode(status),
            taken["out"].decode(),
            taken["err"].decode(),
            self.launch.failure,
        )

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        self.launch.finish()
        for fd in (*self.kept.values(), self.master):
            if fd >= 0:
                os.close(fd)
        failed = undo(self.plan.outside, self.context)
        if failed is not None:
            raise failed


@contextlib.contextmanager
def boxes():
    """A factory of boxes over one busybox tree; the instance's groups are removed at the end."""
    base = tempfile.mkdtemp(prefix="knarr-box-")
    made: list[Box] = []
    try:
        tree = busybox_tree(f"{base}/tree")

        def make(name: str = "box") -> Box:
            made.append(Box(base, tree, f"{name}{len(made)}"))
            return made[-1]

        yield make
    finally:
        for box in made:
            box.close()
        cgroups.remove_instance(cgroups.detect(), INSTANCE)
        shutil.rmtree(base)


def process(*args: str, **changes) -> Process:
    return Process(args=args, env=(PATH,), capabilities=planner.capabilities_for(Security()), **changes)


def run_in(running, *args: str, stdin=None, **changes):
    with contextlib.closing(running.exec(process(*args, **changes), running.given, stdin)) as started:
        return started.finish()
