"""References, digests, platforms, names."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.model import names
from knarr.model.errors import Invalid, KnarrError, Unsupported
from knarr.model.names import Platform, Reference, parse_platform, parse_reference

HEX = "ab" * 32
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:bookworm", "docker.io/library/debian:bookworm", "debian:bookworm"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("foo/bar", "docker.io/foo/bar:latest", "foo/bar:latest"),
        ("localhost/foo:1", "localhost/foo:1", "localhost/foo:1"),
        ("localhost:5000/foo", "localhost:5000/foo:latest", "localhost:5000/foo:latest"),
        ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
        ("[::1]:5000/a:x", "[::1]:5000/a:x", "[::1]:5000/a:x"),
        ("[fc00:1:2::3]/a", "[fc00:1:2::3]/a:latest", "[fc00:1:2::3]/a:latest"),
        ("quay.io/a/b-c_d__e.f:v1.0-x", "quay.io/a/b-c_d__e.f:v1.0-x", "quay.io/a/b-c_d__e.f:v1.0-x"),
        ("a---b", "docker.io/library/a---b:latest", "a---b:latest"),
        ("Host/a", "Host/a:latest", "Host/a:latest"),
        (f"debian@{SHA}", f"docker.io/library/debian@{SHA}", f"debian@{SHA}"),
        (f"debian:t@{SHA}", f"docker.io/library/debian:t@{SHA}", f"debian:t@{SHA}"),
        (
            "sub-dom1.foo.com/bar/baz/quux:some",
            "sub-dom1.foo.com/bar/baz/quux:some",
            "sub-dom1.foo.com/bar/baz/quux:some",
        ),
        (
            "xn--7o8h.com/myimage:xn--7o8h.com",
            "xn--7o8h.com/myimage:xn--7o8h.com",
            "xn--7o8h.com/myimage:xn--7o8h.com",
        ),
        ("a:_t", "docker.io/library/a:_t", "a:_t"),
    ],
)
def test_references_take_docker_s_defaults(text, canonical, familiar):
    reference = parse_reference(text)
    assert (reference.canonical, reference.familiar) == (canonical, familiar)
    assert parse_reference(canonical) == reference
    assert parse_reference(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "/",
        "a/",
        "/a",
        "a//b",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        "_a",
        "a_",
        "Debian",
        "foo/Bar",
        "docker.io/Foo",
        "docker.io/",
        "docker.io",
        "a:",
        "a:.x",
        "a:-x",
        "a:" + "x" * 129,
        "a b",
        "a\n",
        "a:b\n",
        "a:ä",
        "ä",
        "a:b:c",
        "a@",
        "a@b",
        f"a@sha256:{HEX[:-2]}",
        f"a@sha256:{HEX}00",
        f"a@sha256:{HEX.upper()}",
        f"a@SHA256:{HEX}",
        f"a@{SHA}@{SHA}",
        f"a@{SHA}:x",
        f"@{SHA}",
        HEX,
        "-host.com/a",
        "host_x.com/a",
        "host.com:port/a",
        "[::1/a",
        "[fe80::1%25eth0]:5000/a",
        "http://a/b",
        "aa/asdf$$^/aa",
        "a/" + "b" * 256,
        "../a",
        "a/../b",
        "a/./b",
        "a:..",
    ],
)
def test_what_docker_refuses_is_refused(text):
    if text == "docker.io":  # a plain word for docker as well: the repository docker.io on Docker Hub
        assert parse_reference(text).repository == "library/docker.io"
        return
    with pytest.raises(Invalid) as caught:
        parse_reference(text)
    assert caught.value.hint


def test_an_unknown_digest_algorithm_is_named():
    with pytest.raises(Unsupported, match="md5"):
        parse_reference("a@md5:" + "0" * 32)
    assert parse_reference("a@sha512:" + "0" * 128).digest == "sha512:" + "0" * 128


def test_the_digest_decides_what_is_fetched():
    assert parse_reference(f"a:t@{SHA}").target == SHA
    assert parse_reference("a").target == "latest"
    assert parse_reference(f"a:t@{SHA}").with_tag("u") == Reference("docker.io", "library/a", "u")


@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9./:@_\[\]-]{0,40}", fullmatch=True))
def test_any_text_is_a_reference_or_one_clear_refusal(text):
    try:
        reference = parse_reference(text)
    except KnarrError:
        return
    assert parse_reference(reference.canonical) == reference
    assert parse_reference(reference.familiar) == reference
    assert "\n" not in reference.canonical


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("LINUX/x86_64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("armhf", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("windows/amd64", Platform("windows", "amd64")),
    ],
)
def test_platforms(text, expected):
    assert parse_platform(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a/b/c/d", "linux/", "/amd64", "linux//x", "sparc-from-mars", "linux/a b"]
)
def test_platforms_refused(text):
    with pytest.raises(Invalid):
        parse_platform(text)


def test_which_platforms_an_image_runs_on():
    assert Platform("linux", "amd64").runs(Platform("linux", "amd64"))
    assert Platform("linux", "arm64").runs(Platform("linux", "arm64", "v8"))
    assert Platform("linux", "arm", "v7").runs(Platform("linux", "arm", "v6"))
    assert not Platform("linux", "arm", "v6").runs(Platform("linux", "arm", "v7"))
    assert not Platform("linux", "amd64").runs(Platform("linux", "arm64"))
    assert not Platform("linux", "amd64").runs(Platform("linux", "amd64", "v3"))
    assert names.host_platform().os == "linux"
    assert parse_platform("linux") == names.host_platform()


@pytest.mark.parametrize("text", ["web", "a1", "A_b.c-d"])
def test_workload_names(text):
    assert names.check_name(text) == text


@pytest.mark.parametrize("text", ["", "a", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä1", "x" * 256])
def test_workload_names_refused(text):
    with pytest.raises(Invalid):
        names.check_name(text)


def test_ids_and_random_names():
    ids = {names.new_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(one) == 64 and not one[:12].isdecimal() and int(one, 16) >= 0 for one in ids)
    made = {names.random_name() for _ in range(200)}
    assert len(made) > 150
    assert all(names.check_name(one) == one for one in made)


def test_few_modules_are_loaded():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import __future__, re, dataclasses, typing; before = set(sys.modules);"
        "import knarr.model.names; print(*sorted(set(sys.modules) - before))"
    )
    source = names.__file__.removesuffix("knarr/model/names.py")
    out = subprocess.run(
        [sys.executable, "-IS", "-c", program, source], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["knarr", "knarr.model", "knarr.model.errors", "knarr.model.names"]
