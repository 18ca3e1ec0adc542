"""Pulling from Debian's docker-registry: forms, platforms, logins, TLS, plain words when it fails."""

from __future__ import annotations

import base64
import json
import os
import subprocess

import pytest
from tests.support import images
from tests.support import registry as support

from knarr.images import registry
from knarr.images.auth import Credentials
from knarr.model.errors import Denied, NotFound, Unavailable, Unsupported
from knarr.model.names import parse_platform

pytestmark = pytest.mark.skipif(bool(support.available()), reason=support.available() or "there")

LAYERS = [
    images.tar_bytes([images.folder("etc"), images.Member("etc/motd", b"ahoy\n" * 2000)]),
    images.tar_bytes([images.Member("hello", os.urandom(700_000))]),
]
CONFIG = images.config_bytes(LAYERS, cmd=["sh"])


@pytest.fixture(scope="module", autouse=True)
def no_docker_config(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DOCKER_CONFIG", str(tmp_path_factory.mktemp("docker")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    made = {}
    for how in ("gzip", "zstd", "tar"):
        made[how] = images.oci_layout(str(tmp_path_factory.mktemp(how)), LAYERS, CONFIG, how=how)
    return made


@pytest.fixture(scope="module")
def server(layout, tmp_path_factory):
    with support.docker_registry() as running:
        for how in ("gzip", "zstd"):
            support.push(f"oci:{layout[how]}:latest", running, f"form:{how}")
        support.push_blobs(running, "form", "tar", *images.oci_blobs(LAYERS, CONFIG, "tar"))
        archive = images.docker_archive(str(tmp_path_factory.mktemp("docker") / "a.tar"), LAYERS, CONFIG)
        support.push(f"docker-archive:{archive}", running, "form:docker", extra=("--format=v2s2",))
        push_index(running)
        yield running


def push_index(server):
    """An image index of two platforms, put together by hand (skopeo copies but does not make them)."""
    entries = []
    for architecture, variant in (("arm64", "v8"), ("amd64", "")):
        config = images.config_bytes(LAYERS, cmd=[architecture], architecture=architecture)
        blobs, entry = images.oci_blobs(LAYERS, config)
        support.push_blobs(server, "many", entry["digest"], blobs, entry)
        platform = {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})
        entries.append({**entry, "platform": platform})
    entries.append({**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}})
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    support.put(f"http://{server.host}/v2/many/manifests/both", json.dumps(index).encode(), kind)


def content(source):
    out = []
    for layer in source.layers:
        with layer.open() as pieces:
            out.append(b"".join(pieces))
        assert images.sha256(out[-1]) == layer.digest
        assert len(out[-1]) == layer.size
    return out


@pytest.mark.parametrize("form", ["gzip", "zstd", "tar", "docker"])
def test_every_form_of_layer_arrives_whole(server, form):
    source = registry.resolve(f"{server.host}/form:{form}")
    assert json.loads(source.config) == json.loads(CONFIG)
    assert source.manifest_digest == images.sha256(source.manifest)
    assert source.references == (f"{server.host}/form:{form}",)
    assert len(content(source)) == 2
    if form == "tar":
        assert content(source) == LAYERS


def test_a_digest_pins_the_image(server):
    digest = registry.resolve(f"{server.host}/form:gzip").manifest_digest
    source = registry.resolve(f"{server.host}/form@{digest}")
    assert source.manifest_digest == digest
    assert source.references == (f"{server.host}/form@{digest}",)


def test_the_platform_is_chosen(server):
    name = f"{server.host}/many:both"
    assert json.loads(registry.resolve(name).config)["architecture"] == "amd64"
    arm = registry.resolve(name, parse_platform("linux/arm64"))
    assert json.loads(arm.config)["config"]["Cmd"] == ["arm64"]
    with pytest.raises(NotFound, match="is not there for linux/s390x") as caught:
        registry.resolve(name, parse_platform("linux/s390x"))
    assert caught.value.hint == "it is there for: linux/amd64, linux/arm64/v8"


def test_a_single_manifest_for_another_platform_is_not_taken_silently(server):
    entry = json.loads(registry.resolve(f"{server.host}/many:both", parse_platform("arm64")).manifest)
    digest = images.sha256(registry.resolve(f"{server.host}/many:both", parse_platform("arm64")).manifest)
    assert entry["schemaVersion"] == 2
    with pytest.raises(Unsupported, match="is for linux/arm64"):
        registry.resolve(f"{server.host}/many@{digest}")
    assert registry.resolve(f"{server.host}/many@{digest}", parse_platform("arm64")).config


@pytest.mark.parametrize("name", ["nothing:here", "form:unknown", "form@sha256:" + "0" * 64])
def test_what_is_not_there_is_named(server, name):
    with pytest.raises(NotFound) as caught:
        registry.resolve(f"{server.host}/{name}")
    assert caught.value.hint
    assert server.host in caught.value.message


def test_an_unreachable_registry():
    host = f"127.0.0.1:{support.free_port()}"
    with pytest.raises(Unavailable, match=f"'{host}' can't be reached: connection refused"):
        registry.resolve(f"{host}/a")


def test_a_registry_whose_name_does_not_resolve():
    with pytest.raises(Unavailable, match=r"does not resolve|can't be reached"):
        registry.resolve("registry.invalid/a")


def test_login_by_argument_and_by_docker_s_config(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    login = f"{support.USER}:{support.PASSWORD}"
    with support.docker_registry(auth=True) as server:
        name = f"{server.host}/private:1"
        support.push(f"oci:{layout['gzip']}:latest", server, "private:1", credentials=login)
        with pytest.raises(Denied, match="lets nobody unnamed") as caught:
            registry.resolve(name)
        assert (
            caught.value.hint == f"check the name (it may not exist), or log in: docker login {server.host}"
        )
        with pytest.raises(Denied, match="refuses") as caught:
            registry.resolve(name, credentials=Credentials(username="olaf", password="wrong-secret"))
        assert "wrong-secret" not in str(caught.value.to_json())
        good = Credentials(username=support.USER, password=support.PASSWORD)
        content(registry.resolve(name, credentials=good))
        auths = {server.host: {"auth": base64.b64encode(login.encode()).decode()}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        content(registry.resolve(name))


def test_tls(layout, tmp_path, monkeypatch):
    with support.docker_registry(tls=True) as server:
        push = f"oci:{layout['gzip']}:latest"
        support.push(push, server, "a:1")
        # loopback may have any certificate, as with docker
        content(registry.resolve(f"{server.host}/a:1"))
        monkeypatch.setattr("knarr.images.transport.is_loopback", lambda _host: False)
        with pytest.raises(Unavailable, match="certificate that is not trusted") as caught:
            registry.resolve(f"{server.host}/a:1")
        assert "--insecure-registry" in caught.value.hint
        content(registry.resolve(f"{server.host}/a:1", insecure=True))
        monkeypatch.setenv("SSL_CERT_FILE", server.certificate)
        content(registry.resolve(f"{server.host}/a:1"))


def test_plain_http_is_only_for_loopback_and_by_permission(server, monkeypatch):
    monkeypatch.setattr("knarr.images.transport.is_loopback", lambda _host: False)
    with pytest.raises(Unavailable, match="does not speak TLS") as caught:
        registry.resolve(f"{server.host}/form:gzip")
    assert "--insecure-registry" in caught.value.hint
    registry.resolve(f"{server.host}/form:gzip", insecure=True)


def test_skopeo_takes_our_test_layouts(layout, tmp_path):
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout['zstd']}:latest", f"dir:{tmp_path}/d"],
        check=True,
    )
