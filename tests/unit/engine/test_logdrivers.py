"""Log drivers: docker's options, the daemon's defaults, and where the folder is."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from knarr.engine import logdrivers
from knarr.keeper import logfiles
from knarr.model.errors import Invalid, KnarrError, Unsupported
from knarr.model.logs import Logging
from knarr.store import settings


def log(driver: str = "", **options: str) -> Logging:
    return Logging(driver=driver, options={key.replace("_", "-"): value for key, value in options.items()})


@pytest.mark.parametrize(
    ("wanted", "standard", "found"),
    [
        (log(), log(), log("json-file")),
        (log(), log("local", max_size="1m"), log("local", max_size="1m")),
        (
            log(max_size="2m"),
            log("", max_size="1m", max_file="4"),
            log("json-file", max_size="2m", max_file="4"),
        ),
        # the options are those of the settings' driver: another one has none of them
        (log("none"), log("local", max_size="1m"), log("none")),
        (log("local"), log("json-file", max_size="1m"), log("local")),
    ],
)
def test_settings_hold_for_what_is_not_said(wanted: Logging, standard: Logging, found: Logging) -> None:
    assert logdrivers.complete(wanted, standard) == found


@pytest.mark.parametrize(
    ("wanted", "size", "files"),
    [
        (log(), 0, 1),
        (log("json-file", max_size="10k", max_file="3"), 10240, 3),
        (log("json-file", max_size="-1"), 0, 1),
        (log("local"), 20 << 20, 5),
        (log("local", max_file="2"), 20 << 20, 2),
        (log("none"), 1 << 20, 1),
        (log("json-file", mode="blocking", compress="false"), 0, 1),
    ],
)
def test_bounds(wanted: Logging, size: int, files: int) -> None:
    assert logdrivers.rotation(wanted) == logfiles.Rotation(size, files)


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (log("syslog"), Unsupported),
        (log("json-file", labels="a"), Unsupported),
        (log("json-file", tag="a"), Unsupported),
        (log("json-file", compress="true"), Unsupported),
        (log("json-file", mode="non-blocking"), Unsupported),
        (log("local", labels="a"), Invalid),
        (log("none", max_size="1m"), Invalid),
        (log("json-file", max_size="0"), Invalid),
        (log("json-file", max_size="1m", max_file="0"), Invalid),
        (log("json-file", max_file="2"), Invalid),
    ],
)
def test_what_would_not_be_done_is_refused(wanted: Logging, kind: type[KnarrError]) -> None:
    with pytest.raises(kind):
        logdrivers.rotation(wanted)


def workload(folder: str, wanted: Logging) -> SimpleNamespace:
    os.makedirs(folder, exist_ok=True)
    return SimpleNamespace(id="w", dir=folder, name="w", spec=SimpleNamespace(log=wanted))


def test_what_is_not_kept_lies_in_run_and_goes_with_the_workload(tmp_path) -> None:
    run = str(tmp_path / "run")
    w = workload(str(tmp_path / "w"), log("none"))
    os.mkdir(tmp_path / "w" / "log")
    logdrivers.make(run, w)
    assert os.path.realpath(tmp_path / "w" / "log") == f"{run}/unseen/w"
    assert logfiles.rotation(str(tmp_path / "w" / "log")) == logfiles.Rotation(1 << 20, 1)
    logdrivers.renew(w)
    logdrivers.remove(w.dir)
    assert os.listdir(f"{run}/unseen") == []
    # the host was started anew: RUN is empty
    logdrivers.renew(w)
    assert logfiles.rotation(str(tmp_path / "w" / "log")).max_size == 1 << 20
    # a daemon that was killed, or a RUN that was full, between folder and bounds
    os.unlink(tmp_path / "run" / "unseen" / "w" / "rotation")
    logdrivers.renew(w)
    assert logfiles.rotation(str(tmp_path / "w" / "log")).max_size == 1 << 20
    with pytest.raises(Unsupported, match="does not support reading"):
        logdrivers.require_readable(w)


def test_a_folder_that_is_there_is_used(tmp_path) -> None:
    w = workload(str(tmp_path / "w"), log("json-file", max_size="1k"))
    os.mkdir(tmp_path / "w" / "log")
    logdrivers.make(str(tmp_path), w)
    assert logfiles.rotation(str(tmp_path / "w" / "log")).max_size == 1024
    logdrivers.remove(w.dir)
    assert os.path.isdir(tmp_path / "w" / "log")


def test_settings_of_the_file() -> None:
    found = settings.parse("s", b'{"log-driver": "local", "log-opts": {"max-size": "3m", "max-file": 2}}')
    assert found.log == log("local", max_size="3m", max_file="2")
    for text in (b'{"log-driver": 3}', b'{"log-opts": []}', b'{"logdriver": "local"}'):
        with pytest.raises(Invalid):
            settings.parse("s", text)
