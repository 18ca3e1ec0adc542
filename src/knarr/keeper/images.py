"""Image mounts in the keeper's pinned mount namespace: RUN/images/<tree_id>, one mount per image.

Out of scope: when an image is in use (`keeper.supervisor` knows the workloads), trees themselves (`images`).
"""

from __future__ import annotations

import contextlib
import errno
import os

from knarr.kernel import mounts, skeleton


class ImageMounts:
    def __init__(self, run: str) -> None:
        self._folder = os.path.join(run, "images")
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        skeleton.make(run)
        self._skeleton = skeleton.path(run)
        self._mounted: dict[str, str] = {
            name: self._marked(name)
            for name in os.listdir(self._folder)
            if name.isalnum() and os.path.ismount(self.path(name))
        }
        """tree id → the tree's file as its mark says; "" if the keeper before died in between"""

    def path(self, tree_id: str) -> str:
        if not tree_id.isalnum():
            raise OSError(errno.EINVAL, "not a tree id", tree_id)
        return os.path.join(self._folder, tree_id)

    def mount(self, tree_id: str, tree: str, pool: str) -> None:
        target = self.path(tree_id)
        status = os.stat(tree)
        # not used again while the mount holds the file
        found = f"{status.st_dev}:{status.st_ino}"
        if tree_id in self._mounted:
            if self._mounted[tree_id] == found:
                return
            # an image that was removed and came again has its contents elsewhere in the pool; workloads on
            # the old mount keep it by their own references
            self._release(tree_id)
        os.makedirs(target, mode=0o700, exist_ok=True)
        mounts.mount_erofs(tree, pool, target)
        self._mounted[tree_id] = found
        self._unmark(tree_id)
        # without a mark (a full RUN) the next keeper mounts once more
        with contextlib.suppress(OSError):
            os.symlink(found, self._mark(tree_id))

    def unmount(self, tree_id: str) -> None:
        target = self.path(tree_id)
        if tree_id not in self._mounted:
            return
        self._release(tree_id)
        os.rmdir(target)

    def _release(self, tree_id: str) -> None:
        mounts.umount(self.path(tree_id), mounts.UMOUNT_NOFOLLOW)
        del self._mounted[tree_id]
        self._unmark(tree_id)

    def _unmark(self, tree_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._mark(tree_id))

    def _mark(self, tree_id: str) -> str:
        """A link that names the mounted file, for the next keeper."""
        return f"{self.path(tree_id)}.of"

    def _marked(self, tree_id: str) -> str:
        try:
            return os.readlink(self._mark(tree_id))
        except OSError:
            return ""

    def used_by(self, request: bytes) -> list[str]:
        """The mounted trees that a start's text names."""
        return [tree_id for tree_id in self._mounted if tree_id.encode() in request]

    def overlay(self, tree_id: str, upper: str, work: str | None) -> int:
        """A detached overlay mount: the root of a workload that doesn't run, or without `work` one to be
        read only, beside whoever writes to `upper`.
        """
        with contextlib.ExitStack() as opened:

            def place(path: str) -> str:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                return mounts.through_fd(fd)

            below = f"{place(self.path(tree_id))}:{place(self._skeleton)}"
            options: dict[str, str | None]
            if work is None:
                options = {"lowerdir": f"{place(upper)}:{below}"}
            else:
                options = {"lowerdir": below, "upperdir": place(upper), "workdir": place(work)}
            return mounts.new_filesystem("overlay", options)
