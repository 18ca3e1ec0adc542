"""Images out of and into the engine; what workloads leave behind as images. The same behind every wall."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from typing import TYPE_CHECKING

from conformance.harness import IMAGE

if TYPE_CHECKING:
    from conformance.harness import Wall


def test_save_and_load_again(wall: Wall, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "saved.tar"
    wall.knarr("tag", IMAGE, "saved/one:1", check=True)
    wall.knarr("save", "-o", str(target), IMAGE, "saved/one:1", check=True)
    with tarfile.open(target) as archive:
        entries = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert [entry["RepoTags"] for entry in entries] == [[IMAGE, "saved/one:1"]]
    wall.knarr("rmi", "saved/one:1", check=True)
    assert "saved/one:1" in wall.knarr("load", "-i", str(target), check=True).out
    wall.knarr("rmi", "saved/one:1", check=True)


def test_save_goes_to_a_pipe_but_not_to_a_terminal(wall: Wall) -> None:
    process = wall.instance.popen("image", "save", "--format", "oci-archive", IMAGE, stdout=-1)
    data = process.communicate(timeout=60)[0]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert "oci-layout" in archive.getnames()
        assert "manifest.json" not in archive.getnames()
    code, shown = wall.on_terminal("save", IMAGE)
    assert (code, "standard output is a terminal" in shown) == (1, True)


def test_save_of_nothing_leaves_no_file(wall: Wall, tmp_path: pathlib.Path) -> None:
    done = wall.knarr("save", "-o", str(tmp_path / "x.tar"), "never/heard:of")
    assert done.code == 1
    assert "'never/heard:of' is not here" in done.err
    assert not list(tmp_path.iterdir())
