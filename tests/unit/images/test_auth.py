"""Credentials out of docker's configuration and its helpers."""

from __future__ import annotations

import base64
import json
import os

import pytest

from knarr.images import auth
from knarr.images.auth import Credentials, find_credentials
from knarr.model.errors import Failed, Invalid, KnarrError, Unavailable


def encoded(text):
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text)

    return write


def test_no_configuration_means_no_login(config):
    assert find_credentials("a.example") is None
    config({})
    assert find_credentials("a.example") is None


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("a.example:5000", "a.example:5000"),
        ("https://a.example", "a.example"),
        ("https://a.example/v2/", "a.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_logins_of_every_form_of_key(config, key, registry):
    config({"auths": {"other.example": {"auth": encoded("x:y")}, key: {"auth": encoded("olaf:a:b")}}})
    assert find_credentials(registry) == Credentials(username="olaf", password="a:b")
    assert find_credentials("a.example.evil.net") is None
    assert find_credentials("example") is None


def test_other_fields(config):
    config({"auths": {"a.b": {"identitytoken": "tok"}, "c.d": {"username": "u", "password": "p"}, "e.f": {}}})
    assert find_credentials("a.b") == Credentials(identity_token="tok")
    assert find_credentials("c.d") == Credentials(username="u", password="p")
    assert find_credentials("e.f") is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"auths":{"a.b":{"auth":"$$$"}}}', '{"x":"' + "y" * (1 << 21) + '"}']
)
def test_a_damaged_configuration_is_named_without_its_contents(config, text):
    config(text)
    with pytest.raises(Invalid) as caught:
        find_credentials("a.b")
    assert "$$$" not in str(caught.value.to_json())


def test_secrets_are_in_no_representation():
    shown = repr(Credentials(username="olaf", password="s3cret", identity_token="t0ken"))
    assert "s3cret" not in shown
    assert "t0ken" not in shown


@pytest.fixture
def helper(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(auth, "_HELPER_FOLDERS", (str(folder), str(folder)))

    def write(script):
        path = folder / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        os.chmod(path, 0o755)

    return write


def test_a_helper_is_asked(config, helper):
    helper(
        'read server; echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"olaf\\",\\"Secret\\":\\"for $server\\"}"'
    )
    config({"credsStore": "test"})
    assert find_credentials("a.b:5000") == Credentials(username="olaf", password="for a.b:5000")
    assert find_credentials("docker.io") == Credentials(
        username="olaf", password="for https://index.docker.io/v1/"
    )
    config({"credHelpers": {"a.b": "test"}, "auths": {"c.d": {"username": "u"}}})
    assert find_credentials("a.b") == Credentials(username="olaf", password="for a.b")
    assert find_credentials("c.d") == Credentials(username="u")


def test_what_helpers_say_instead(config, helper):
    config({"credsStore": "test"})
    helper('echo \'{"Username":"<token>","Secret":"idt"}\'')
    assert find_credentials("a.b") == Credentials(identity_token="idt")
    helper("echo credentials not found in native keychain; exit 1")
    assert find_credentials("a.b") is None
    helper("echo s3cret; exit 3")
    with pytest.raises(Unavailable, match="status 3") as caught:
        find_credentials("a.b")
    assert "s3cret" not in str(caught.value.to_json())
    helper("echo s3cret")
    with pytest.raises(Failed) as caught:
        find_credentials("a.b")
    assert "s3cret" not in str(caught.value.to_json())


def test_a_helper_is_never_looked_up_by_path(config, helper, monkeypatch, tmp_path):
    helper("exit 0")
    monkeypatch.setattr(auth, "_HELPER_FOLDERS", ("/usr/bin", "/bin"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name, kind in (("test", Unavailable), ("../../evil", Invalid), ("-x", Invalid), ("a b", Invalid)):
        config({"credsStore": name})
        with pytest.raises(kind) as caught:
            find_credentials("a.b")
        assert isinstance(caught.value, KnarrError)
        assert caught.value.hint
