"""docker-registry with token authentication: a token service of our own signs what the registry checks."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.support import images
from tests.support import registry as support
from tests.support.hostile import Reply, hostile_registry

from knarr.images import registry
from knarr.images.auth import Credentials
from knarr.model.errors import Denied

pytestmark = pytest.mark.skipif(bool(support.available()), reason=support.available() or "there")

LAYER = images.tar_bytes([images.Member("hello", b"ahoy" * 1000)])


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenService:
    """Signs any scope for one user, and pulls of `public` for everybody."""

    def __init__(self, certificate, key):
        self.key = key
        with open(certificate) as file:
            self.chain = ["".join(file.read().split("-----")[2].split())]
        self.asked = []

    def __call__(self, request):
        query = parse_qs(urlsplit(request.path).query)
        login = request.headers.get("Authorization", "")
        good = base64.b64encode(f"{support.USER}:{support.PASSWORD}".encode()).decode()
        self.asked.append((query.get("scope"), bool(login)))
        if login and login != f"Basic {good}":
            return Reply(401)
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = (
                actions.split(",")
                if login
                else [one for one in actions.split(",") if (name, one) == ("public", "pull")]
            )
            access.append({"type": kind, "name": name, "actions": allowed})
        return Reply(body=json.dumps({"token": self.sign(access)}).encode())

    def sign(self, access):
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": self.chain}
        claims = {
            "iss": "test",
            "aud": "test",
            "sub": "x",
            "nbf": now - 5,
            "iat": now,
            "exp": now + 300,
            "jti": "1",
        }
        text = ".".join(
            base64url(json.dumps(part).encode()) for part in (header, {**claims, "access": access})
        )
        command = ["openssl", "dgst", "-sha256", "-sign", self.key]
        signature = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
        return f"{text}.{base64url(signature)}"


def test_pulling_with_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    certificate, key = support.make_certificate(str(tmp_path), "token")
    service = TokenService(certificate, key)
    (tmp_path / "layout").mkdir()
    images.oci_layout(str(tmp_path / "layout"), [LAYER], images.config_bytes([LAYER]), how="gzip")
    with hostile_registry() as tokens:
        tokens.routes["/token"] = service
        with support.docker_registry(token_realm=f"{tokens.url}/token", token_bundle=certificate) as server:
            for name in ("public", "private"):
                login = f"{support.USER}:{support.PASSWORD}"
                support.push(f"oci:{tmp_path}/layout:latest", server, f"{name}:1", credentials=login)
            service.asked.clear()
            good = Credentials(username=support.USER, password=support.PASSWORD)
            for name, credentials in (("public", None), ("private", good)):
                source = registry.resolve(f"{server.host}/{name}:1", credentials=credentials)
                with source.layers[0].open() as pieces:
                    assert images.sha256(b"".join(pieces)) == source.layers[0].digest
                assert service.asked == [([f"repository:{name}:pull"], credentials is not None)]
                service.asked.clear()
            for credentials in (None, Credentials(username=support.USER, password="wrong")):
                with pytest.raises(Denied):
                    registry.resolve(f"{server.host}/private:1", credentials=credentials)
