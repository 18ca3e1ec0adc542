"""What a keeper of another version wrote into the journal is undone as far as this one knows it."""

from __future__ import annotations

import dataclasses

from knarr.kernel import plan as plans
from knarr.kernel.steps import MountImage
from knarr.model import codec


def test_steps_of_another_version_are_left_out() -> None:
    step = MountImage(**{item.name: "x" for item in dataclasses.fields(MountImage)})
    fields = {item.name: codec.to_json(getattr(step, item.name)) for item in dataclasses.fields(step)}
    journal = [
        ["MountImage", fields],
        ["NoSuchStep", {}],
        ["MountImage", {"renamed": 1}],
        ["Overlay", {}],
        [],
        None,
    ]
    assert plans.known_outside(journal) == (step,)
