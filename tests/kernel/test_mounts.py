"""Image mounts, straight from files and by loop devices. Power needed: mount, EROFS, loop devices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

SCRIPT = """
import os, sys
source, tree, pool, target, way = sys.argv[1:]
sys.path[:0] = [source]
from knarr.kernel import mounts, namespaces
namespaces.unshare(namespaces.CLONE_NEWNS)
mounts.make_private()
if way == "loop":
    mounts._mount_erofs_file = lambda *ignored: False
mounts.mount_erofs(tree, pool, target)
with open(target + "/file", "rb") as file:
    assert file.read() == b"content" * 5000
print(open("/proc/self/mounts").read().splitlines()[-1])
mounts.umount(target)
"""


@pytest.mark.parametrize("way", ["file", "loop"])
def test_erofs_with_a_pool(tmp_path, way):
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("no mkfs.erofs to make the image with (package erofs-utils)")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"content" * 5000)
    # a comma and a colon: the options are a comma-separated list
    folder = tmp_path / "a,b:c"
    folder.mkdir()
    (tmp_path / "mnt").mkdir()
    tree, pool = folder / "tree", folder / "pool"
    command = [
        "mkfs.erofs",
        "--chunksize=4096",
        f"--blobdev={tmp_path}/pool",
        f"{tmp_path}/tree",
        f"{tmp_path}/d",
    ]
    subprocess.run(command, check=True, capture_output=True)
    os.rename(tmp_path / "pool", pool)
    os.rename(tmp_path / "tree", tree)
    import knarr

    source = os.path.dirname(os.path.dirname(knarr.__file__))
    arguments = [source, tree, pool, tmp_path / "mnt", way]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    if way == "loop" and "loop-control" in run.stderr:
        pytest.skip("this host has no loop devices")
    assert run.returncode == 0, run.stderr
    assert " erofs ro" in run.stdout
    assert ("/dev/loop" in run.stdout) is (way == "loop")
