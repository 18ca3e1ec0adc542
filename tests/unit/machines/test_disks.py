"""The writable disk's template: what the overlay needs is in it, with the modes that a workload's root has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from knarr.machines import disks


def test_everybody_may_enter_the_root_whatever_the_daemon_s_umask(tmp_path):
    if not os.path.exists("/usr/sbin/mkfs.ext4") or shutil.which("debugfs", path="/usr/sbin:/sbin") is None:
        pytest.skip("power missing: mkfs.ext4 and debugfs (e2fsprogs)")
    before = os.umask(0o077)
    try:
        disks.make_upper(str(tmp_path), str(tmp_path / "upper.img"))
    finally:
        os.umask(before)
    for name in ("upper", "work"):
        words = ["/usr/sbin/debugfs", "-R", f"stat {name}", str(tmp_path / "upper.img")]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert re.search(r"Type: directory\s+Mode:\s+0755", told), told
        assert re.search(r"User:\s+0\s+Group:\s+0", told), told
