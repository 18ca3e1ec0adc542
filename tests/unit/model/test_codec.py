from __future__ import annotations

import dataclasses

import pytest

from knarr.model import codec
from knarr.model.errors import Invalid
from knarr.model.workload import (
    Isolation,
    Mount,
    MountKind,
    NetworkMode,
    Resources,
    Security,
    Update,
    WorkloadSpec,
)

PLAIN = WorkloadSpec(image="x")
FULL = WorkloadSpec(
    image="x",
    isolation=Isolation.MICROVM,
    command=(),
    env=("A=1",),
    network=NetworkMode.NONE,
    mounts=(Mount(kind=MountKind.TMPFS, target="/t"),),
    labels={"a": "b"},
    security=Security(privileged=True),
    resources=Resources(memory=1 << 20),
    tty=True,
)


@pytest.mark.parametrize("spec", [PLAIN, FULL])
def test_defaults_need_not_be_said(spec):
    said = codec.changed(spec)
    assert codec.from_json(WorkloadSpec, said) == spec
    assert codec.from_json(WorkloadSpec, codec.to_json(spec)) == spec


def test_only_what_differs_is_said():
    assert codec.changed(PLAIN) == {"image": "x"}
    assert codec.changed(FULL)["security"] == {"privileged": True}
    # an empty command is another thing than none
    assert codec.changed(FULL)["command"] == []
    assert codec.changed(Update(memory=0)) == {"memory": 0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"image": "x", "mounts": [{"kind": "tmpfs", "target": 5}]},
            "WorkloadSpec.mounts[0].target: expected str, got int",
        ),
        ({"image": "x", "labels": {"a": 1}}, "WorkloadSpec.labels.a: expected str, got int"),
        ({"image": "x", "isolation": "jail"}, "WorkloadSpec.isolation: unknown value 'jail'"),
        ({"image": None}, "WorkloadSpec.image: expected str, got NoneType"),
        ({}, "WorkloadSpec: "),
        ({"image": "x", "tty": 1}, "WorkloadSpec.tty: expected bool, got int"),
        ({"image": "x", "stop_timeout": True}, "WorkloadSpec.stop_timeout: expected int, got bool"),
        ([], "WorkloadSpec: expected an object, got list"),
    ],
)
def test_an_error_names_its_place(data, words):
    with pytest.raises(Invalid) as caught:
        codec.from_json(WorkloadSpec, data)
    assert caught.value.message.startswith(words)


def test_every_field_has_a_decoder():
    names = {field.name for field in dataclasses.fields(WorkloadSpec)}
    with pytest.raises(Invalid) as caught:
        codec.from_json(WorkloadSpec, {"no": 1})
    assert set(caught.value.hint.removeprefix("known fields: ").split(", ")) == names
