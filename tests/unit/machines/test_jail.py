"""A program's jail is listed once, and again when one of its files changes."""

from __future__ import annotations

import os
import shutil

import pytest

from knarr.machines import jail

CAT = shutil.which("cat")
LDD = shutil.which("ldd")
pytestmark = pytest.mark.skipif(not CAT or not LDD, reason="power missing: cat and ldd")


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """The programs that ldd was asked about, by the real one behind a script that notes it."""
    notes = tmp_path / "notes"
    notes.touch()
    folder = tmp_path / "path"
    folder.mkdir()
    script = folder / "ldd"
    script.write_text(f'#!/bin/sh\necho "$1" >>{notes}\nexec {LDD} "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: notes.read_text().splitlines()


def test_files_are_listed_once_until_one_changes(tmp_path, listed):
    program = str(tmp_path / "program")
    shutil.copy2(CAT, program)
    first = jail.build(str(tmp_path), program)
    assert jail.build(str(tmp_path), program) == first
    assert listed() == [program]
    os.utime(program, (1, 1))
    second = jail.build(str(tmp_path), program)
    assert listed() == [program, program]
    assert second.root != first.root
    assert os.path.exists(second.root + program)


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path):
    files = {str(tmp_path / "lib.so"): str(tmp_path / "lib.so.1")}
    for name in ("lib.so.1", "lib.so.2"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "lib.so").symlink_to("lib.so.1")
    before = jail._stamp(files)
    (tmp_path / "lib.so").unlink()
    (tmp_path / "lib.so").symlink_to("lib.so.2")
    assert jail._stamp(files) != before
