"""From options to a spec that the model accepts; mistakes are refused before the daemon hears of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.cli import spec
from knarr.cli.commands.run import CREATE, RUN
from knarr.cli.options import parse
from knarr.model import codec
from knarr.model.errors import Invalid, Unsupported
from knarr.model.workload import Isolation, MountKind, NetworkMode, SecurityProfile, WorkloadSpec


def made(*words: str) -> WorkloadSpec:
    arguments = parse(RUN.options, words, intermixed=False)
    return codec.from_json(WorkloadSpec, spec.workload(arguments))


def test_nothing_said_is_nothing_sent() -> None:
    assert spec.workload(parse(CREATE.options, ["img"], intermixed=False)) == {"image": "img"}


def test_everything_said_arrives(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FROM_ME", "mine")
    monkeypatch.delenv("NOT_SET", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\nA=file\n\nC=3\n")
    found = made(
        *(
            "--runtime",
            "microvm",
            "--name",
            "x",
            "--rm",
            "-it",
            "-e",
            "A=1",
            "-e",
            "FROM_ME",
            "-e",
            "NOT_SET",
        ),
        *(
            "--env-file",
            str(file),
            "-u",
            "1:2",
            "-w",
            "/w",
            "-h",
            "host",
            "--init",
            "--read-only",
            "-m",
            "512m",
        ),
        *("--cpus", "1.5", "--cpuset-cpus", "0-1", "--pids-limit", "100", "--ulimit", "nofile=10:20"),
        *("--ulimit", "core=-1", "--network", "none", "-l", "k=v", "--entrypoint", "/e", "--group-add", "g"),
        *("--stop-signal", "INT", "--stop-timeout", "3", "--cap-add", "cap_net_admin", "--cap-drop", "all"),
        *("--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"),
        *("--security-profile", "hardened", "img", "sh", "-c", "true"),
    )
    assert found.isolation is Isolation.MICROVM
    assert found.command == ("sh", "-c", "true")
    assert found.env == ("A=file", "C=3", "A=1", "FROM_ME=mine")
    assert (found.tty, found.stdin_open, found.auto_remove, found.init, found.read_only) == (True,) * 5
    assert found.resources.memory == 512 << 20
    assert found.resources.cpus == 1.5
    assert (found.resources.cpuset, found.resources.pids) == ("0-1", 100)
    assert [(item.name, item.soft, item.hard) for item in found.rlimits] == [
        ("nofile", 10, 20),
        ("core", -1, -1),
    ]
    assert found.network is NetworkMode.NONE
    assert found.entrypoint == ("/e",)
    assert (found.stop_signal, found.stop_timeout) == ("INT", 3)
    assert found.security.cap_add == ("NET_ADMIN",)
    assert found.security.cap_drop == ("ALL",)
    assert found.security.no_new_privileges
    assert found.security.seccomp == "unconfined"
    assert found.security.profile is SecurityProfile.HARDENED


def test_an_empty_entrypoint_clears_the_image_s() -> None:
    assert made("--entrypoint", "", "img").entrypoint == ()
    assert made("img").entrypoint is None


def test_mounts(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    found = made(
        *("-v", "/a:/b:ro,rslave", "-v", "./c:/d", "-v", "name:/e", "-v", "/f"),
        *("--mount", "type=bind,src=/g,dst=/h,readonly", "--mount", "type=tmpfs,target=/i,tmpfs-size=1m"),
        *("--tmpfs", "/j:size=2m,mode=1777", "img"),
    ).mounts
    assert [(item.kind, item.source, item.target) for item in found] == [
        (MountKind.BIND, "/a", "/b"),
        (MountKind.BIND, str(tmp_path / "c"), "/d"),
        (MountKind.VOLUME, "name", "/e"),
        (MountKind.VOLUME, None, "/f"),
        (MountKind.BIND, "/g", "/h"),
        (MountKind.TMPFS, None, "/i"),
        (MountKind.TMPFS, None, "/j"),
    ]
    assert (found[0].read_only, found[0].options) == (True, ("rslave",))
    assert found[4].read_only
    assert found[5].options == ("size=1m",)
    assert found[6].options == ("size=2m", "mode=1777")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80", [("", 0, 80, "tcp")]),
        ("8080:80", [("", 8080, 80, "tcp")]),
        ("127.0.0.1:8080:80/udp", [("127.0.0.1", 8080, 80, "udp")]),
        ("0:80", [("", 0, 80, "tcp")]),
        ("127.0.0.1::80", [("127.0.0.1", 0, 80, "tcp")]),
        ("[::1]:8080:80", [("::1", 8080, 80, "tcp")]),
        ("8000-8001:80-81", [("", 8000, 80, "tcp"), ("", 8001, 81, "tcp")]),
    ],
)
def test_ports(text: str, wanted: list[tuple]) -> None:
    found = [
        (item.host_ip, item.host_port, item.container_port, item.protocol)
        for item in made("-p", text, "img").ports
    ]
    assert found == wanted


@pytest.mark.parametrize(
    "words",
    [
        ("-p", "80:0"),
        ("-p", "x"),
        ("-p", "1-2:1-3"),
        ("-p", "70000"),
        ("-p", "80/sctp"),
        ("-p", "[::1:80"),
        ("-p", "1:2:3:4"),
        ("-v", "/a:b"),
        ("-v", "/a:/b:bogus"),
        ("-v", "a/b:/c"),
        ("-v", "/a:/b", "-v", "/c:/b/"),
        ("--mount", "type=bind,dst=/x"),
        ("--mount", "type=nfs,dst=/x"),
        ("--mount", "bogus=1"),
        ("--tmpfs", "rel"),
        ("-e", "=x"),
        ("-e", "A B=x"),
        ("-m", "lots"),
        ("--cpus", "0.001"),
        ("--device-read-bps", "sda:1m"),
        ("--cpu-quota", "much"),
        ("--ulimit", "nofile"),
        ("--ulimit", "nofile=a"),
        ("--pids-limit", "x"),
        ("--stop-timeout", "x"),
        ("--security-opt", "bogus"),
        ("--env-file", "/nonexistent/file"),
        ("-l", "=v"),
    ],
)
def test_mistakes_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(Invalid):
        made(*words, "img")


def test_a_seccomp_file_travels_as_its_text(tmp_path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert made("--security-opt", f"seccomp={file}", "img").security.seccomp == file.read_text()
    for wrong in ("/nowhere.json", "/etc/passwd"):
        with pytest.raises(Invalid):
            made("--security-opt", f"seccomp={wrong}", "img")


def test_namespaces() -> None:
    found = made("--pid", "container:other", "--ipc", "shareable", "--network", "container:web", "img")
    assert found.sharing.joins() == {"pid": "other", "net": "web"}
    assert found.sharing.ipc == "shareable"
    assert found.network.value == "container"
    for text in ("auto:size=x", "auto:sise=1", "nobody", "remap:1", "host:1"):
        with pytest.raises(Invalid):
            made("--userns", text, "img")


def test_keep_id_keeps_the_caller_of_sudo(monkeypatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "1001")
    monkeypatch.setattr("os.getuid", lambda: 0)
    kept = made("--userns", "keep-id:uid=5", "img").userns
    assert kept is not None
    assert (kept.uid, kept.owner_uid, kept.owner_gid) == (5, 1000, 1001)


def test_masks_add_up() -> None:
    found = made(
        "--security-opt", "mask=/a:/b", "--security-opt", "mask=/c", "--security-opt", "unmask=ALL", "img"
    )
    assert (found.security.mask, found.security.unmask) == (("/a", "/b", "/c"), ("ALL",))


@given(
    st.sampled_from(
        [
            *("-p", "-v", "--mount", "--tmpfs", "--ulimit", "-e", "-m", "--security-opt", "--log-opt"),
            *("--memory-swap", "--cpu-quota", "--cpus", "--device-read-bps", "--blkio-weight-device"),
        ]
    ),
    st.text(max_size=20),
)
def test_any_text_is_accepted_or_refused(option: str, text: str) -> None:
    try:
        made(option, text, "img")
    except (Invalid, Unsupported):
        pass


def test_words_of_docker_s_mounts(tmp_path) -> None:
    assert spec.mount("type=bind,src=/a,dst=/b,bind-nonrecursive,consistency=cached") == {
        "kind": "bind",
        "source": "/a",
        "target": "/b",
        "options": ["bind-nonrecursive"],
    }
    assert spec.mount("type=bind,src=/a,dst=/b,bind-recursive=disabled")["options"] == ["bind-nonrecursive"]
    assert spec.mount("source=v,target=/v,volume-driver=local,volume-nocopy")["options"] == ["nocopy"]
    assert "options" not in spec.mount("type=bind,src=/a,dst=/b,readonly,bind-recursive=readonly")
    for text in (
        "type=bind,src=/a,dst=/b,readonly,bind-recursive=writable",
        "src=v,dst=/v,volume-driver=nfs",
    ):
        with pytest.raises(Unsupported):
            spec.mount(text)
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbfA=1\n# no\n B=2\r\n")
    assert spec.environment((), [str(tmp_path / "env")]) == ["A=1", "B=2"]
