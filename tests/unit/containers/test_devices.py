"""Devices given to a container, as each dialect of control groups says them."""

from __future__ import annotations

import os
import stat

import pytest

from knarr.containers.security import DeviceNode, characters, device_rules
from knarr.model.errors import Unsupported


def node(kind: int, access: str = "rwm") -> DeviceNode:
    return DeviceNode(name="x/y", mode=kind | 0o600, number=os.makedev(10, 200), access=access)


def test_v1_has_a_rule_for_each() -> None:
    rules = device_rules("/group", (node(stat.S_IFCHR, "rw"), node(stat.S_IFBLK, "r")))
    assert rules[0] == ("/group/devices.deny", "a")
    assert rules[-2:] == (("/group/devices.allow", "c 10:200 rw"), ("/group/devices.allow", "b 10:200 r"))


def test_v2_lets_character_devices_through() -> None:
    assert characters((node(stat.S_IFCHR), node(stat.S_IFCHR, "rw"))) == ((10, 200), (10, 200))


@pytest.mark.parametrize("given", [node(stat.S_IFBLK), node(stat.S_IFCHR, "r"), node(stat.S_IFCHR, "wm")])
def test_v2_refuses_by_name_what_its_filter_can_not_tell(given: DeviceNode) -> None:
    with pytest.raises(Unsupported, match="'/dev/x/y'"):
        characters((given,))
