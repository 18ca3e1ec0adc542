"""Which ids a workload gets: modes, defaults, maps that hold together, and what excludes what."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.engine import sharing
from knarr.engine.table import Table
from knarr.engine.userns import UserNamespaces
from knarr.model.errors import Invalid, Unsupported
from knarr.model.namespaces import (
    Sharing,
    UserMode,
    UserNamespace,
    host_id,
    inside_id,
    parse_userns,
)
from knarr.model.workload import Isolation, Security, SecurityProfile, WorkloadSpec
from knarr.networks.host import LocalStore
from knarr.store.ranges import FIRST, Ranges
from knarr.store.settings import SettingsFile

HARDENED = Security(profile=SecurityProfile.HARDENED)


@pytest.fixture
def users(tmp_path):
    return UserNamespaces(
        Ranges("abcdef", LocalStore(), str(tmp_path / "locks")), SettingsFile(str(tmp_path)), Table()
    )


def spec(**more):
    return WorkloadSpec(image="img", **more)


def test_the_mode_is_ones_own_then_the_profiles_then_the_settings(users, tmp_path):
    assert users.complete(spec()).userns is None
    assert users.complete(spec(security=HARDENED)).userns.mode is UserMode.AUTO
    (tmp_path / "settings.json").write_text(json.dumps({"userns": "remap"}))
    assert users.complete(spec()).userns.mode is UserMode.REMAP
    assert users.complete(spec(security=HARDENED)).userns.mode is UserMode.AUTO
    host = spec(security=HARDENED, userns=UserNamespace())
    assert users.complete(host).userns.mode is UserMode.HOST
    assert users.choose(users.complete(host)) is None
    machine = users.complete(spec(isolation=Isolation.MICROVM))
    assert machine.userns is None
    assert users.choose(machine) is None


@given(st.integers(0, 65535), st.integers(1, 60000))
def test_a_kept_id_is_the_only_hole(uid, owner):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        users = UserNamespaces(Ranges("a", LocalStore(), folder), SettingsFile(folder), Table())
        wanted = UserNamespace(mode=UserMode.KEEP_ID, uid=uid, gid=uid, owner_uid=owner, owner_gid=owner)
        done = users.complete(spec(userns=wanted))
        ids = users.choose(done)
        users.release()
    assert done.user == f"{uid}:{uid}"
    assert sum(count for _, _, count in ids.uids) == 65536
    assert host_id(ids.uids, uid) == owner
    assert inside_id(ids.uids, owner) == uid
    for inside in {0, uid - 1, uid + 1, 65535} - {-1, uid, 65536}:
        assert host_id(ids.uids, inside) >= FIRST
        assert inside_id(ids.uids, host_id(ids.uids, inside)) == inside
    with pytest.raises(ValueError, match="not mapped"):
        host_id(ids.uids, 65536)
    assert inside_id(ids.uids, 0) == 65534


@pytest.mark.parametrize(
    "wanted",
    [
        UserNamespace(mode=UserMode.KEEP_ID),
        UserNamespace(mode=UserMode.KEEP_ID, owner_uid=0, owner_gid=5),
        UserNamespace(mode=UserMode.KEEP_ID, owner_uid=5, owner_gid=5, uid=70000),
        UserNamespace(mode=UserMode.AUTO, size=0),
        UserNamespace(mode=UserMode.AUTO, size=1 << 24),
        UserNamespace(mode=UserMode.REMAP, start=0),
        UserNamespace(mode=UserMode.REMAP, start=(1 << 31) - 10),
    ],
)
def test_ids_that_would_be_somebody_elses_are_refused(users, wanted):
    with pytest.raises(Invalid):
        users.complete(spec(userns=wanted))


@given(st.text(max_size=40))
def test_any_text_is_a_mode_or_refused(text):
    try:
        assert isinstance(parse_userns(text).mode, UserMode)
    except Invalid:
        pass


def test_modes_of_namespaces_are_checked():
    for bad in (
        Sharing(pid="container:"),
        Sharing(pid="private"),
        Sharing(ipc="shared"),
        Sharing(uts="container:x"),
        Sharing(cgroup="container:x"),
        Sharing(network="container:x"),
    ):
        with pytest.raises(Invalid):
            sharing.check(spec(sharing=bad))
    with pytest.raises(Unsupported, match="shmmax"):
        sharing.check(spec(sharing=Sharing(ipc="host"), sysctls={"kernel.shmmax": "1"}))
    with pytest.raises(Invalid, match="shm size"):
        sharing.check(spec(sharing=Sharing(ipc="none"), shm_size=1 << 20))
