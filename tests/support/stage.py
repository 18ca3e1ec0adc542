"""Programs started by `stage` from this process, with the steps a test names; no keeper, and no root where no step needs it."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass

from knarr.keeper.launch import Launch, StepFailed, Streams
from knarr.kernel.plan import Context, Plan

ENV = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)


@dataclass
class Ended:
    code: int
    out: str
    failure: StepFailed | None


def run(*argv, steps=(), env=ENV, fds=None, numbers=None, flags=0) -> Ended:
    """Output and exit code; `fds` are descriptors by name, which the launch closes, `numbers` their places besides 1 and 2."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    streams = Streams()
    streams.pipe_out("stdout", "out")
    places = {"stdout": 1, "stderr": 2, **(numbers or {})}
    context = Context(fds={**streams.child, "stderr": streams.child["stdout"], **(fds or {})})
    launch = Launch(
        Plan(argv=argv, env=env, inside=tuple(steps), fds=places, clone_flags=flags), context, streams
    )
    try:
        launch.begin(null)
        launch.go()
        pid, launch.pid = launch.pid, 0
        while True:
            select.select([launch.channel], [], [], 20)
            if launch.read() is None:
                break
        with open(streams.kept.pop("out"), "rb") as output:
            text = output.read().decode()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        launch.finish()
        streams.close()
        os.close(null)
    return Ended(code, text, launch.failure)
