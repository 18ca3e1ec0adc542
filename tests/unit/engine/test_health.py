"""What exit codes of a health check mean, and whose settings hold."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from knarr.engine import health
from knarr.images.config import parse_config
from knarr.model.errors import Invalid
from knarr.model.health import Health

CHECK = Health(test=("CMD", "true"), retries=2)


def config(check: object) -> bytes:
    inner = {"Healthcheck": check}
    return json.dumps({"config": inner, "rootfs": {"type": "layers", "diff_ids": []}}).encode()


def effective(own: Health | None, image: Health | None) -> Health | None:
    spec, config = SimpleNamespace(health=own), SimpleNamespace(health=image)
    return health.effective(SimpleNamespace(spec=spec, image=SimpleNamespace(config=config)))  # type: ignore[arg-type]


def test_so_many_failures_in_a_row_make_it_unhealthy() -> None:
    found = {"status": "starting", "failing_streak": 0}
    seen = []
    for code, early in ((1, True), (1, False), (0, False), (1, False), (1, False), (0, False)):
        found["status"] = health.judge(found, CHECK, code=code, early=early)
        seen.append(found["status"])
    assert seen == ["starting", "starting", "healthy", "healthy", "unhealthy", "healthy"]


def test_the_users_settings_are_over_the_images_and_those_over_the_defaults() -> None:
    found = effective(Health(interval=1.0), Health(test=("CMD-SHELL", "true"), interval=9.0, retries=7))
    assert found is not None
    assert (found.interval, found.retries, found.timeout) == (1.0, 7, 30.0)
    assert health.command(found) == ("/bin/sh", "-c", "true")
    assert effective(Health(test=("NONE",)), Health(test=("CMD", "true"))) is None
    assert effective(None, None) is None


def test_an_images_check_is_read() -> None:
    check = {"Test": ["CMD", "a", "b"], "Interval": 2_000_000_000, "Retries": 5}
    found = parse_config(config(check))[0].health
    assert found == Health(test=("CMD", "a", "b"), interval=2.0, retries=5)


@pytest.mark.parametrize(
    "check", [{"Interval": "1"}, {"Retries": -1}, {"Test": "true"}, [], {"Timeout": True}]
)
def test_an_images_nonsense_is_refused_at_the_door(check: object) -> None:
    with pytest.raises(Invalid):
        parse_config(config(check))
