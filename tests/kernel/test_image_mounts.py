"""The keeper's image mounts: one for each image however many ask for it, also after another keeper; then none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.support import layers

from kernel.keeper_tools import ENV, STREAMS, in_instance, needs_root
from knarr.images.store import ImageStore
from knarr.keeper.link import KeeperError
from knarr.kernel.plan import Plan
from knarr.kernel.steps import MountImage

pytestmark = [pytest.mark.root, needs_root]


def mounts(it) -> list[str]:
    """Mount id and place of each image mount in the keeper's namespace."""
    text = Path(f"/proc/{it.holder.roles()['keeper']}/mountinfo").read_text()
    rows = [line.split() for line in text.splitlines()]
    return [f"{row[0]} {row[4]}" for row in rows if row[4].startswith(f"{it.run}/images/")]


def test_starts_and_the_daemon_share_one_mount_that_can_go(tmp_path):
    async def work(it):
        store = ImageStore(str(tmp_path / "store"))
        rootfs = store.ingest(
            layers.source([layers.tar(layers.folder("."), layers.member("a", b"x"))])
        ).rootfs
        step = MountImage(tree_id=rootfs.tree_id, tree=rootfs.tree, pool=rootfs.pool)
        plan = Plan(argv=("/bin/sleep", "1000"), env=ENV, fds=STREAMS, outside=(step,))
        for name in ("one", "two"):
            await it.link.start(name, plan, {}, it.streams(name))
        first = mounts(it)
        assert len(first) == 1
        await it.link.mount(rootfs)
        assert mounts(it) == first
        await it.link.close()
        await it.kill_and_start("keeper")
        await it.connect()
        await it.link.mount(rootfs)
        assert mounts(it) == first
        with pytest.raises(KeeperError, match="used"):
            await it.link.unmount(rootfs.tree_id)
        for name in ("one", "two"):
            await it.link.signal(name, signal.SIGKILL)
        for _ in range(2):
            await it.exits.get()
        for name in ("one", "two"):
            await it.link.forget(name)
        await it.link.unmount(rootfs.tree_id)
        assert mounts(it) == []
        assert os.listdir(f"{it.run}/images") == []
        store.close()

    in_instance(tmp_path, work)
