"""The keeper's roots of workloads that don't run, before anything is mounted."""

from __future__ import annotations

import os

import pytest

from knarr.keeper.images import ImageMounts


def test_a_root_whose_layer_is_gone_leaves_no_descriptor(tmp_path):
    images = ImageMounts(str(tmp_path))
    os.makedirs(images.path("tree"))
    before = os.listdir("/proc/self/fd")
    for work in (None, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="gone"):
            images.overlay("tree", str(tmp_path / "gone"), work)
    assert os.listdir("/proc/self/fd") == before
