"""The peers of `bench start`: the kernel floor, runc, a bare QEMU. Each is asked for one sample at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from knarr.bench.measure import Subject, timed
from knarr.kernel import mounts, namespaces
from knarr.model.errors import Failed, NotFound

LAUNCHER = os.path.join(sys.prefix, "bin", "knarr")
"""the command as users run it"""
NATIVE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "native-bin")
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def private_mounts() -> None:
    """Give this process a mount namespace of its own, so that nothing it mounts is seen or left."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)


@contextlib.contextmanager
def image_tree(image: dict[str, Any]) -> Iterator[str]:
    """The image's tree mounted in this process's mount namespace, as the floor's and runc's lower."""
    rootfs = image["rootfs"]
    with tempfile.TemporaryDirectory(prefix="knarr-bench-") as folder:
        mounts.mount_erofs(rootfs["tree"], rootfs["pool"], folder)
        try:
            yield folder
        finally:
            mounts.umount(folder, mounts.MNT_DETACH)


def run_tool(*words: str) -> None:
    done = subprocess.run(words, **QUIET, check=False)  # type: ignore[call-overload]
    if done.returncode:
        raise Failed(
            f"{' '.join(words)!r} exited with {done.returncode}: {done.stderr.decode()[-300:].strip()}"
        )


@contextlib.contextmanager
def bridge(name: str) -> Iterator[str]:
    """A bridge for the floor's veth pairs."""
    run_tool("ip", "link", "add", name, "type", "bridge")
    try:
        run_tool("ip", "link", "set", name, "up")
        yield name
    finally:
        run_tool("ip", "link", "del", name)


@contextlib.contextmanager
def kernel_floor(*words: str) -> Iterator[Subject]:
    """`csrc/floor.c`: a C program that makes the same system calls as one start; a line in, a figure out."""
    binary = os.path.join(NATIVE, "floor")
    if not os.path.exists(binary):
        raise NotFound("the kernel floor program is not built", hint="run scripts/install")
    process = subprocess.Popen([binary, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def sample() -> float:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise Failed("the kernel floor program ended early")
        return float(line)

    try:
        yield Subject(name="floor", sample=sample)
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def floor_rate(tree: str, work: str, link: str, count: int, lives: int) -> float:
    """Lives a second of `count` copies of that program at a time, each with a folder of its own in `work`."""
    share = lives // count
    copies = []
    for number in range(count):
        own = os.path.join(work, str(number))
        os.makedirs(own, exist_ok=True)
        group = f"knarr_floor{os.getpid()}_{number}"
        words = (os.path.join(NATIVE, "floor"), "container", tree, own, link, group, "/bin/true")
        copies.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    started = time.perf_counter()
    for copy in copies:
        assert copy.stdin is not None
        copy.stdin.write("\n" * share)
        copy.stdin.flush()
    answers = [copy.communicate()[0] for copy in copies]
    if any(len(text.split()) != share for text in answers):
        raise Failed("the kernel floor program ended early")
    return share * count / (time.perf_counter() - started)


@contextlib.contextmanager
def runc_bundle(tree: str, *words: str) -> Iterator[tuple[str, str] | None]:
    """(runc, a bundle's folder) for `words` in the tree; None where runc isn't installed."""
    binary = shutil.which("runc")
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="knarr-runc-") as bundle:
        run_tool(binary, "spec", "-b", bundle)
        path = os.path.join(bundle, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["root"] = {"path": tree, "readonly": True}
        config["process"] |= {"terminal": False, "args": list(words)}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        yield binary, bundle


@contextlib.contextmanager
def runc(tree: str) -> Iterator[Subject | None]:
    """`runc run` of `true` in the same tree with its own namespaces; None where runc isn't installed."""
    with runc_bundle(tree, "/bin/true") as bundle:
        if bundle is None:
            yield None
            return
        binary, folder = bundle
        words = (binary, "--root", f"{folder}/state", "run", "-b", folder, f"knarr-bench-{os.getpid()}")
        yield Subject(name="runc", sample=lambda: timed(lambda: run_tool(*words)))
