"""docker cp's rules, and tars from behind a wall that try to leave the target."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from knarr.cli import copyrules, registry, tarfiles
from knarr.cli.context import Context
from knarr.cli.copyrules import Kind
from knarr.cli.options import parse
from knarr.model.errors import KnarrError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("box:/a", ("box", "/a")),
        ("box:a", ("box", "/a")),
        ("/a:b", (None, "/a:b")),
        ("./a:b", (None, "./a:b")),
        ("a/b:c", (None, "a/b:c")),
        ("-", (None, "-")),
        ("plain", (None, "plain")),
    ],
)
def test_splitting(text: str, wanted: tuple) -> None:
    assert copyrules.split(text) == wanted


@pytest.mark.parametrize(
    ("source", "kind", "target", "there", "wanted"),
    [
        ("/f", Kind.FILE, "/new", Kind.MISSING, ("/", "new")),
        ("/f", Kind.FILE, "/d", Kind.FOLDER, ("/d", "")),
        ("/f", Kind.FILE, "/d/", Kind.FOLDER, ("/d/", "")),
        ("/f", Kind.FILE, "/old", Kind.FILE, ("/", "old")),
        ("/d", Kind.FOLDER, "/new", Kind.MISSING, ("/", "new")),
        ("/d", Kind.FOLDER, "/e", Kind.FOLDER, ("/e", "")),
        ("/d/.", Kind.FOLDER, "/e", Kind.FOLDER, ("/e", ".")),
        ("/d/.", Kind.FOLDER, "/new", Kind.MISSING, ("/", "new")),
        ("f", Kind.FILE, "g", Kind.MISSING, (".", "g")),
    ],
)
def test_rules(source: str, kind: str, target: str, there: str, wanted: tuple) -> None:
    rule = copyrules.decide(source, kind, target, there)
    assert (rule.folder, rule.rename) == wanted


@pytest.mark.parametrize(
    ("source", "kind", "target", "there"),
    [
        ("/f", Kind.FILE, "/new/", Kind.MISSING),
        ("/d", Kind.FOLDER, "/f", Kind.FILE),
        ("/f/", Kind.FILE, "/x", Kind.MISSING),
        ("/f", Kind.FILE, "/g/", Kind.FILE),
    ],
)
def test_what_the_rules_refuse(source: str, kind: str, target: str, there: str) -> None:
    with pytest.raises(KnarrError):
        copyrules.decide(source, kind, target, there)


def test_a_tree_survives_the_way_out_and_in(tmp_path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "big").write_bytes(os.urandom(700_001))
    (tree / "empty").touch()
    os.link(tree / "sub" / "big", tree / "hard")
    os.symlink("sub/big", tree / "soft")
    os.mkfifo(tree / "fifo")
    (tree / "name\udcff").write_text("odd")
    (tree / "sub").chmod(0o750)
    out = tmp_path / "out"
    out.mkdir()
    tarfiles.extract(tarfiles.pack(str(tree), "tree", keep_owner=True), str(out), "copy", "tree")
    copy = out / "copy"
    assert (copy / "sub" / "big").read_bytes() == (tree / "sub" / "big").read_bytes()
    assert (copy / "hard").stat().st_nlink == 2
    assert os.readlink(copy / "soft") == "sub/big"
    assert (copy / "name\udcff").read_text() == "odd"
    assert (copy / "sub").stat().st_mode & 0o777 == 0o750
    assert (copy / "fifo").is_fifo()
    assert int((copy / "sub").stat().st_mtime) == int((tree / "sub").stat().st_mtime)


def test_the_content_alone(tmp_path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    out = tmp_path / "out"
    out.mkdir()
    tarfiles.extract(tarfiles.pack(str(tree) + "/.", "tree", keep_owner=False), str(out), ".", "tree")
    assert (out / "a").read_text() == "a"


def hostile(*members: tuple[str, bytes, str]) -> list[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            if kind == tarfile.REGTYPE:
                info.size = 4
                archive.addfile(info, io.BytesIO(b"evil"))
            else:
                archive.addfile(info)
    return [file.getvalue()]


REG, SYM, LNK, DIR, CHR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", REG, "")],
        [("/evil", REG, "")],
        [("t/../../evil", REG, "")],
        [("t", SYM, ".."), ("t/evil", REG, "")],
        [("t", SYM, "OUTSIDE"), ("t/evil", REG, "")],
        [("t", SYM, "OUTSIDE"), ("t", DIR, ""), ("t/evil", REG, "")],
        [("t", LNK, "../secret")],
        [("t", LNK, "/secret")],
        [("d", SYM, ".."), ("t", LNK, "d/secret")],
        [("t", CHR, "")],
        [("d", DIR, ""), ("d", REG, "")],
    ],
)
def test_no_member_leaves_the_target(tmp_path, members: list) -> None:
    (tmp_path / "secret").write_text("secret")
    out = tmp_path / "out"
    out.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    named = [(name, kind, link.replace("OUTSIDE", str(outside))) for name, kind, link in members]
    with pytest.raises((KnarrError, OSError)):
        tarfiles.extract(iter(hostile(*named)), str(out), "", "t")
    assert sorted(os.listdir(tmp_path)) == ["out", "outside", "secret"]
    assert not os.listdir(outside)


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("good")
    out = tmp_path / "out"
    out.mkdir()
    os.symlink(victim, out / "f")
    tarfiles.extract(iter(hostile(("f", REG, ""))), str(out), "", "f")
    assert victim.read_text() == "good"
    assert (out / "f").read_text() == "evil"


@pytest.mark.parametrize("data", [b"", b"x" * 600, hostile(("f", REG, ""))[0][:514]])
def test_damaged_archives_are_one_error(tmp_path, data: bytes) -> None:
    with pytest.raises(KnarrError, match="damaged"):
        tarfiles.extract(iter([data]), str(tmp_path), "", "f")


def test_from_workload_to_workload_names_the_two_steps() -> None:
    command = registry.load(registry.VERBS["cp"])
    arguments = parse(command.options, ["a:/x", "b:/y"])
    with pytest.raises(KnarrError, match="two steps") as caught:
        command.handler(Context(None, None), arguments)
    assert "knarr cp - OTHER:FOLDER" in str(caught.value.hint)
