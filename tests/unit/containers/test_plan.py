"""The planner: pure, so every promise is read off the steps; no root needed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from knarr.containers.plan import ContainerInput, capabilities_for, plan, plan_exec
from knarr.kernel import caps, cgroups, namespaces, steps
from knarr.kernel.facts import HostFacts
from knarr.kernel.plan import from_json, to_json, to_text
from knarr.model.errors import Invalid, Unsupported
from knarr.model.resource import RootFs
from knarr.model.workload import (
    Mount,
    MountKind,
    NetworkMode,
    Process,
    Resources,
    Security,
    SecurityProfile,
)

V1 = cgroups.Layout(
    version=1,
    roots={name: f"/cg/{name}" for name in cgroups.V1_CONTROLLERS},
    controllers=cgroups.V1_CONTROLLERS,
)
V2 = cgroups.Layout(
    version=2, roots={"unified": "/cg"}, controllers=("cpu", "memory", "pids", "cpuset", "io")
)
NONE = cgroups.Layout(version=0, roots={})


def given(layout=V1, process: dict | None = None, **changes) -> ContainerInput:
    values = {
        "id": "abc",
        "instance": "123456",
        "run": "/run/k",
        "dir": "/root/w/abc",
        "rootfs": RootFs(tree_id="t" * 64, tree="/r/t.erofs", pool="/r/pool", disk_map=""),
        "process": Process(
            args=("sh",), env=("PATH=/bin",), capabilities=capabilities_for(Security()), **(process or {})
        ),
        "hostname": "host",
        "facts": HostFacts(architecture="x86_64", cgroups=layout),
    }
    return ContainerInput(**(values | changes))


def kinds(made) -> list[str]:
    return [type(step).__name__ for step in made.inside]


def find(made, kind):
    return [step for step in (*made.outside, *made.inside) if isinstance(step, kind)]


def test_it_crosses_the_wire():
    mounts = (
        Mount(kind=MountKind.BIND, source="/s", target="/t"),
        Mount(kind=MountKind.TMPFS, target="/tmp"),
    )
    made = plan(given(mounts=mounts, etc_files={"/etc/hosts": "/x/hosts"}, process={"tty": True}))
    assert from_json(to_json(made)) == made
    made = plan_exec(given(), given().process, 1)
    assert from_json(to_json(made)).join == "pidfd"
    # the wire's text, once worked out and once remembered
    for _ in range(2):
        assert json.loads(to_text(made)) == to_json(made)
    assert all(line for line in made.describe())


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_order_of_privileges(no_new_privileges):
    order = kinds(plan(given(process={"no_new_privileges": no_new_privileges})))
    assert order.index("Guard") == 0
    assert order.index("ResolveUser") > order.index("PivotRoot")
    assert order.index("BoundingSet") < order.index("SetIds") < order.index("Capabilities")
    assert order.index("Mask") > order.index("MountFs")
    # without no_new_privs only root may load a filter; with it, as late as possible
    assert (order.index("Seccomp") > order.index("NoNewPrivs")) if no_new_privileges else True
    assert (order.index("Seccomp") < order.index("SetIds")) is not no_new_privileges


def test_network_modes():
    def network(mode):
        made = plan(given(network=mode))
        return bool(made.clone_flags & namespaces.CLONE_NEWNET), bool(find(made, steps.SetNs))

    assert network(NetworkMode.BRIDGE) == (False, True)
    assert network(NetworkMode.NONE) == (True, False)
    assert network(NetworkMode.HOST) == (False, False)


def test_both_kinds_of_groups():
    v1, v2 = plan(given()), plan(given(V2))
    assert find(v1, steps.CgroupEnter)[0].files[0].endswith("/knarr_123456/abc/tasks")
    assert not find(v2, steps.CgroupEnter)
    assert find(v2, steps.CgroupCreate)[0].descriptor
    assert v2.clone_flags & namespaces.CLONE_NEWCGROUP
    assert not v1.clone_flags & namespaces.CLONE_NEWCGROUP


def test_limits_of_both_kinds():
    for pids, text in ((None, "4096"), (-1, "max")):
        files = find(plan(given(resources=Resources(pids=pids))), steps.CgroupCreate)[0].files
        assert dict(files)["/cg/pids/knarr_123456/abc/pids.max"] == text
    wanted = Resources(memory=1 << 20, cpus=1.5, cpuset="0-1", pids=9)
    v1 = dict(find(plan(given(resources=wanted)), steps.CgroupCreate)[0].files)
    v2 = dict(find(plan(given(V2, resources=wanted)), steps.CgroupCreate)[0].files)
    assert v1["/cg/cpu/knarr_123456/abc/cpu.cfs_quota_us"] == "150000"
    assert v1["/cg/pids/knarr_123456/abc/pids.max"] == "9"
    assert v2["/cg/knarr_123456/abc/cpu.max"] == "150000 100000"
    assert v2["/cg/knarr_123456/abc/memory.max"] == "1048576"


def test_no_groups_no_limits():
    plan(given(NONE))
    with pytest.raises(Unsupported):
        plan(given(NONE, resources=Resources(pids=1)))


def test_privileged_has_no_masks():
    made = plan(given(security=Security(privileged=True)))
    assert not find(made, steps.Mask)
    assert not find(made, steps.ReadOnlyPaths)
    assert "devices.deny" not in str(find(made, steps.CgroupCreate)[0].files)
    assert find(made, steps.Nodes)


def test_capability_arithmetic():
    assert len(capabilities_for(Security())) == 14
    assert len(capabilities_for(Security(profile=SecurityProfile.HARDENED))) == 11
    assert capabilities_for(Security(privileged=True)) == caps.NAMES
    assert capabilities_for(Security(cap_drop=("ALL",))) == ()
    assert capabilities_for(Security(cap_drop=("all",), cap_add=("cap_net_admin",))) == ("NET_ADMIN",)
    assert "CHOWN" not in capabilities_for(Security(cap_add=("ALL",), cap_drop=("CHOWN",)))
    assert len(capabilities_for(Security(cap_add=("ALL",)))) == len(caps.NAMES)
    with pytest.raises(Invalid, match="unknown"):
        capabilities_for(Security(cap_add=("NONSENSE",)))


def test_outer_mounts_first():
    mounts = tuple(Mount(kind=MountKind.TMPFS, target=target) for target in ("/a/b/c", "/a", "/a/b"))
    assert [step.target for step in find(plan(given(mounts=mounts)), steps.Tmpfs)] == ["/a", "/a/b", "/a/b/c"]


def test_tmpfs_options():
    def attributes(*options):
        mount = Mount(kind=MountKind.TMPFS, target="/t", options=options)
        return find(plan(given(mounts=(mount,))), steps.Tmpfs)[0]

    assert attributes().attributes == 0xE
    assert attributes("exec").attributes == 0x6
    assert attributes("size=1m", "ro").options == ("size=1m",)
    with pytest.raises(Invalid):
        attributes("context=x")


def test_host_capabilities_limit_what_is_handed_on():
    facts = HostFacts(architecture="x86_64", cgroups=V1, capabilities=("CHOWN",))
    assert find(plan(given(facts=facts)), steps.BoundingSet)[0].keep == ("CHOWN",)


def test_exec_is_treated_like_the_first_process():
    first, further = plan(given()), plan_exec(given(), given().process, 7)
    for kind in (steps.Seccomp, steps.BoundingSet, steps.Capabilities, steps.ResolveUser):
        assert find(first, kind) == find(further, kind)
    joined = find(further, steps.SetNs)[0].flags
    assert joined & namespaces.CLONE_NEWNS
    assert joined & namespaces.CLONE_NEWCGROUP
    assert not joined & namespaces.CLONE_NEWPID


paths = st.text(alphabet="ab/.", min_size=0, max_size=12)


@forall(paths)
def test_targets(target):
    mount = Mount(kind=MountKind.TMPFS, target=target)
    try:
        plan(given(mounts=(mount,)))
    except Invalid:
        return
    assert target.startswith("/")


def test_the_plan_is_frozen():
    with pytest.raises(AttributeError):
        plan(given()).argv = ()
    assert replace(plan(given()), argv=("x",)).argv == ("x",)
