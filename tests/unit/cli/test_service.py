"""`system service`: the unit, whose it is, and that nothing is half done."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from knarr.cli.commands import service
from knarr.cli.context import Context
from knarr.cli.main import main
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path


def call(folder: Path, *words: str, root: str = "/srv/a b", run: str = "/run/other") -> int:
    return main(["--root", root, "--run", run, "system", "service", *words, "--units", str(folder)])


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_install_writes_a_unit_of_this_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "install", "--no-start") == 0
    unit = only(tmp_path)
    assert unit.name == "knarr-run-other.service"
    text = unit.read_text()
    assert '"--root" "/srv/a b" "--run" "/run/other" "daemon" "run"' in text
    assert {"KillMode=process", "Delegate=yes", "Type=notify"} <= set(text.splitlines())
    assert "written" in capsys.readouterr().out
    assert call(tmp_path, "install", "--no-start") == 0
    assert "as it was" in capsys.readouterr().out


def test_dry_run_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "install", "--dry-run") == 0
    assert "[Service]" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    launcher = tmp_path / "a 100% $odd\\ name"
    launcher.mkdir()
    call(tmp_path, "install", "--no-start", root=str(launcher))
    unit = next(tmp_path.glob("*.service"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    own = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, own) == (0, [])


def test_a_unit_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "mine.service"
    foreign.write_text("[Service]\n")
    for verb in ("install", "uninstall"):
        assert call(tmp_path, verb, "--no-start", "--name", "mine") == 1
        assert "is not knarr's" in capsys.readouterr().err
    assert foreign.read_text() == "[Service]\n"


def test_uninstall_removes_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, "install", "--no-start")
    assert call(tmp_path, "status") == 1
    assert call(tmp_path, "uninstall", "--no-start") == 0
    assert not list(tmp_path.iterdir())
    assert call(tmp_path, "uninstall", "--no-start") == 1
    assert "no such unit" in capsys.readouterr().err


def test_without_systemd_install_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "_RUNNING", str(tmp_path / "missing"))
    units = tmp_path / "units"
    units.mkdir()
    assert call(units, "install") == 1
    assert "systemd does not run" in capsys.readouterr().err
    assert not list(units.iterdir())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b", "x" * 300])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        service.unit_name(Context(None, None), name)
