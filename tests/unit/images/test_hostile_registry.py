"""Registries that lie, stall, redirect and fish for passwords: classes 8 and 24 of the threat list."""

from __future__ import annotations

import base64
import json

import pytest
from tests.support import images
from tests.support.hostile import Reply, hostile_registry

from knarr.images import manifest, registry, transport
from knarr.images.auth import Credentials, clean_token, may_send, parse_challenges
from knarr.model.errors import Denied, Failed, Invalid, KnarrError, NotFound, Unavailable, Unsupported

LAYER = images.tar_bytes([images.Member("hello", b"ahoy" * 50_000)])
CONFIG = images.config_bytes([LAYER])
BLOBS, ENTRY = images.oci_blobs([LAYER], CONFIG, "tar")
MANIFEST = json.loads(BLOBS[ENTRY["digest"]])
DIGEST = images.sha256(LAYER)
LOGIN = Credentials(username="olaf", password="tide-and-wind")
SECRET = base64.b64encode(b"olaf:tide-and-wind").decode()
INDEX_KIND = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(registry, "_PAUSE", 0.001)


@pytest.fixture
def server():
    with hostile_registry() as running:
        running.serve_image(BLOBS, ENTRY)
        yield running


def pull(server, credentials=None, name="a:1"):
    source = registry.resolve(f"{server.host}/{name}", credentials=credentials)
    out = []
    for layer in source.layers:
        with layer.open() as pieces:
            out.append(b"".join(pieces))
    return out


def test_an_honest_answer_is_taken(server):
    assert pull(server) == [LAYER]


def changed(**fields):
    return {**MANIFEST, **fields}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (changed(schemaVersion=1), Unsupported),
        (changed(schemaVersion=3), Invalid),
        (changed(manifests=[]), Invalid),
        (changed(mediaType=INDEX_KIND), Invalid),
        (changed(mediaType="application/vnd.docker.distribution.manifest.v2+json"), Invalid),
        (changed(mediaType="application/x-else"), Unsupported),
        (changed(layers={}), Invalid),
        (changed(layers=[{}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "size": -1}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "size": True}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "size": 1 << 50}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "digest": DIGEST.upper()}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "digest": DIGEST[:-2]}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "digest": "sha256:../../../etc/passwd"}]), Invalid),
        (changed(layers=[{**MANIFEST["layers"][0], "digest": "sha512:" + "0" * 128}]), Unsupported),
        (changed(layers=[{**MANIFEST["layers"][0], "digest": "md5:" + "0" * 32}]), Unsupported),
        (changed(layers=[{**MANIFEST["layers"][0], "mediaType": "text/plain"}]), Unsupported),
        (
            changed(
                layers=[
                    {
                        **MANIFEST["layers"][0],
                        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                    }
                ]
            ),
            Unsupported,
        ),
        (changed(layers=MANIFEST["layers"] * 2), Invalid),
        (changed(layers=MANIFEST["layers"] * 600), Invalid),
        (
            changed(config={**MANIFEST["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}),
            Unsupported,
        ),
        (changed(config={**MANIFEST["config"], "size": 1 << 30}), Invalid),
        (changed(config={**MANIFEST["config"], "size": 3}), Invalid),
        (changed(config={**MANIFEST["config"], "digest": DIGEST}), Invalid),
        (changed(config=None), Invalid),
        ({**{key: value for key, value in MANIFEST.items() if key != "layers"}, "Layers": []}, Invalid),
        (b'{"schemaVersion":2,"schemaVersion":2}', Invalid),
        (b"[" * 200_000, Invalid),
        (b'{"a":' * 100 + b"1" + b"}" * 100, Invalid),
        (b"[]", Invalid),
        (b"NaN", Invalid),
        (b"\xff\xfe", Invalid),
        (b"<html>", Invalid),
        (b" " * (manifest.MAX_MANIFEST + 1), Invalid),
        (b'{"schemaVersion":' + b"9" * 5000 + b"}", Invalid),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(server, document, error):
    server.serve_manifest(document)
    with pytest.raises(error) as caught:
        pull(server)
    assert caught.value.hint
    assert len(caught.value.message) < 500


def test_a_manifest_that_says_another_kind_than_its_header(server):
    server.serve_manifest(MANIFEST, kind=INDEX_KIND)
    with pytest.raises(Invalid, match="not of the kind"):
        pull(server)


def index_of(*entries):
    return {"schemaVersion": 2, "mediaType": INDEX_KIND, "manifests": list(entries)}


def test_an_index_whose_entry_is_not_what_it_promised(server):
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    for wrong in ({"size": 5}, {"digest": DIGEST}, {"mediaType": INDEX_KIND}, {"size": 1 << 33}):
        server.serve_manifest(index_of({**ENTRY, **platform, **wrong}), INDEX_KIND)
        with pytest.raises((Invalid, NotFound)):
            pull(server)
    server.serve_manifest(index_of({**ENTRY, **platform}), INDEX_KIND)
    assert pull(server) == [LAYER]


def test_indexes_do_not_nest_without_end(server):
    inner = ENTRY
    for _ in range(6):
        document = json.dumps(
            index_of({**inner, "platform": {"os": "linux", "architecture": "amd64"}})
        ).encode()
        server.serve_manifest(document, INDEX_KIND)
        inner = {"mediaType": INDEX_KIND, "digest": images.sha256(document), "size": len(document)}
    with pytest.raises(Invalid, match="index of indexes"):
        pull(server)


def test_a_pinned_digest_must_be_what_comes(server):
    other = "sha256:" + "1" * 64
    server.routes[f"/v2/a/manifests/{other}"] = server.routes["/v2/a/manifests/1"]
    with pytest.raises(Invalid, match="does not match its digest"):
        pull(server, name=f"a@{other}")
    server.routes["/v2/a/manifests/1"].headers["Docker-Content-Digest"] = other
    with pytest.raises(Invalid, match="does not match the digest the registry gives"):
        pull(server)


def test_a_config_for_another_number_of_layers(server):
    config = images.config_bytes([LAYER, LAYER])
    blobs, entry = images.oci_blobs([LAYER], config, "tar")
    server.serve_image(blobs, entry)
    with pytest.raises(Invalid, match="names 2 layers, there are 1"):
        pull(server)


@pytest.mark.parametrize("body", [LAYER[:-1] + b"x", LAYER + b"more", b"x" * len(LAYER)])
def test_a_layer_with_other_bytes_is_refused(server, body):
    server.routes[f"/v2/a/blobs/{DIGEST}"] = Reply(body=body)
    with pytest.raises(Invalid):
        pull(server)


def test_a_layer_that_stays_short_is_given_up(server):
    server.routes[f"/v2/a/blobs/{DIGEST}"] = Reply(body=LAYER[:1000])
    with pytest.raises(Unavailable, match="stopped at 1000 of"):
        pull(server)
    assert len(server.headers_sent_to(f"/v2/a/blobs/{DIGEST}")) < 10


def ranged(request):
    """Sends 60 KB, then drops the connection; heeds ranges."""
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    headers = {"Content-Range": f"bytes {start}-{len(LAYER) - 1}/{len(LAYER)}"} if start else {}
    return Reply(206 if start else 200, LAYER[start:], headers, cut=60_000)


def test_an_interrupted_layer_goes_on_where_it_stopped(server):
    path = f"/v2/a/blobs/{DIGEST}"
    server.routes[path] = ranged
    assert pull(server) == [LAYER]
    ranges = [headers.get("range") for headers in server.headers_sent_to(path)]
    assert ranges == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_a_registry_without_ranges_starts_over_and_what_is_known_is_skipped(server):
    cuts = iter([1000, 150_000, None])
    server.routes[f"/v2/a/blobs/{DIGEST}"] = lambda _request: Reply(body=LAYER, cut=next(cuts))
    assert pull(server) == [LAYER]


def test_a_wrong_range_is_not_glued_in(server):
    def wrong(request):
        if "Range" not in request.headers:
            return Reply(body=LAYER, cut=1000)
        return Reply(206, LAYER[2000:], {"Content-Range": f"bytes 2000-{len(LAYER) - 1}/{len(LAYER)}"})

    server.routes[f"/v2/a/blobs/{DIGEST}"] = wrong
    with pytest.raises(Unavailable, match="another range"):
        pull(server)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_registry_is_asked_again_a_few_times(server, status):
    good = server.routes["/v2/a/manifests/1"]
    answers = iter([Reply(status), Reply(status), good])
    server.routes["/v2/a/manifests/1"] = lambda _request: next(answers)
    assert pull(server) == [LAYER]
    server.routes["/v2/a/manifests/1"] = Reply(status)
    with pytest.raises(Unavailable, match=f"status {status}"):
        pull(server)


def test_a_slow_body_counts_as_dropped(server, monkeypatch):
    monkeypatch.setattr(transport, "_SMALL_SECONDS", -1.0)
    with pytest.raises(Unavailable, match="in the middle of its answer"):
        pull(server)
    monkeypatch.setattr(transport, "_SMALL_SECONDS", 60.0)
    monkeypatch.setattr(transport, "_SLOW_WINDOW", -1.0)
    monkeypatch.setattr(transport, "_SLOW_BYTES", 1 << 40)
    with pytest.raises(Unavailable, match="too slow"):
        pull(server)


def test_a_password_does_not_follow_a_redirect_to_another_host(server):
    with hostile_registry() as other:
        other.routes["/blob"] = Reply(body=LAYER)
        basic = Reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        good = server.routes["/v2/a/manifests/1"]
        server.routes["/v2/a/manifests/1"] = lambda request: (
            good if "Authorization" in request.headers else basic
        )
        server.routes[f"/v2/a/blobs/{DIGEST}"] = Reply(307, headers={"Location": f"{other.url}/blob"})
        assert pull(server, LOGIN) == [LAYER]
        assert server.headers_sent_to(f"/v2/a/blobs/{DIGEST}")[0]["authorization"] == f"Basic {SECRET}"
        assert "authorization" not in other.headers_sent_to("/blob")[0]
        # and the other host can't ask for it either
        other.routes["/blob"] = basic
        with pytest.raises(Denied):
            pull(server, LOGIN)
        assert all("authorization" not in headers for _, headers in other.seen)


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://x/y", "http://u:p@127.0.0.1/", "http://[::1", "//"]
)
def test_redirects_to_odd_places_are_refused(server, place):
    server.routes[f"/v2/a/blobs/{DIGEST}"] = Reply(302, headers={"Location": place})
    with pytest.raises(KnarrError):
        pull(server)


def test_redirects_end(server):
    path = f"/v2/a/blobs/{DIGEST}"
    server.routes[path] = Reply(302, headers={"Location": path})
    with pytest.raises(Failed, match="without end"):
        pull(server)
    assert len(server.headers_sent_to(path)) < 10


def with_tokens(server, token, realm=None):
    """Ask for a bearer token, from `realm`, before anything is given."""
    realm = realm or f"{server.url}/token"
    ask = Reply(
        401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="repository:other:push"'}
    )
    for path, good in list(server.routes.items()):
        if path.startswith("/v2/"):
            right = f"Bearer {token}"
            server.routes[path] = lambda request, good=good: (
                good if request.headers.get("Authorization") == right else ask
            )
    return realm


def test_a_token_is_fetched_once_and_only_to_pull(server):
    with_tokens(server, "t0k")
    server.routes["/token"] = Reply(body=b'{"access_token":"t0k"}')
    assert pull(server, LOGIN) == [LAYER]
    [asked] = [path for path, _ in server.seen if path.startswith("/token")]
    assert asked == "/token?scope=repository%3Aa%3Apull&service=s"
    assert server.headers_sent_to("/token")[0]["authorization"] == f"Basic {SECRET}"
    server.seen.clear()
    assert pull(server) == [LAYER]
    assert "authorization" not in server.headers_sent_to("/token")[0]


def test_an_identity_token_is_posted(server):
    bodies = []

    def token(request):
        bodies.append(request.rfile.read(int(request.headers["Content-Length"])))
        return Reply(body=b'{"token":"t0k"}')

    with_tokens(server, "t0k")
    server.routes["/token"] = token
    assert pull(server, Credentials(identity_token="refresh-me")) == [LAYER]
    assert b"refresh_token=refresh-me" in bodies[0]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"token":5}', b'{"token":"a\\r\\nX: y"}', b'{"token":""}', b"x" * (2 << 20)]
)
def test_a_bad_token_is_an_error(server, body):
    with_tokens(server, "t0k")
    server.routes["/token"] = Reply(body=body)
    with pytest.raises((Invalid, Failed)):
        pull(server)


def test_a_registry_that_never_has_enough_is_left(server):
    server.routes["/token"] = Reply(body=b'{"token":"wrong"}')
    with_tokens(server, "t0k")
    with pytest.raises(Denied) as caught:
        pull(server, LOGIN)
    assert len(server.seen) < 10
    text = json.dumps(caught.value.to_json())
    assert "tide-and-wind" not in text
    assert SECRET not in text
    server.routes["/token"] = Reply(401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})
    with pytest.raises(Denied):
        pull(server, LOGIN)


def test_a_token_that_ran_out_is_renewed(server):
    tokens = iter(["t1", "t2", "t3"])
    server.routes["/token"] = lambda _request: Reply(body=json.dumps({"token": next(tokens)}).encode())
    with_tokens(server, "t1")
    source = registry.resolve(f"{server.host}/a:1")
    server.serve_image(BLOBS, ENTRY)
    with_tokens(server, "t2")
    with source.layers[0].open() as pieces:
        assert b"".join(pieces) == LAYER


def test_no_password_goes_to_a_realm_of_another_domain(server):
    with hostile_registry() as thief:
        thief.routes["/token"] = Reply(body=b'{"token":"t0k"}')
        with_tokens(server, "t0k", f"http://localhost:{thief.host.rpartition(':')[2]}/token")
        assert pull(server, LOGIN) == [LAYER]
        assert all("authorization" not in headers for _, headers in thief.seen)
        thief.routes["/token"] = Reply(401)
        with pytest.raises(Denied) as caught:
            pull(server, LOGIN)
        assert "log in to 'localhost' as well" in caught.value.hint


def test_a_proxy_that_wants_a_login(server, monkeypatch):
    server.routes["/v2/a/manifests/1"] = Reply(407, headers={"Proxy-Authenticate": "Basic"})
    with pytest.raises(Denied, match="proxy"):
        pull(server)


def test_requests_go_through_the_proxy_of_the_environment(server, monkeypatch):
    monkeypatch.setattr(transport, "is_loopback", lambda _host: False)
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    for path, reply in list(server.routes.items()):
        server.routes[f"http://registry.example{path}"] = reply
    server.routes["http://registry.example/v2/"] = Reply()
    monkeypatch.setattr(registry.Registry, "_find_base", lambda _self: "http://registry.example")
    source = registry.resolve("registry.example/a:1", insecure=True)
    with source.layers[0].open() as pieces:
        assert b"".join(pieces) == LAYER


def test_where_passwords_may_go():
    assert may_send("registry-1.docker.io", "auth.docker.io")
    assert may_send("registry.gitlab.com", "gitlab.com")
    assert may_send("ghcr.io", "ghcr.io")
    assert may_send("127.0.0.1", "127.0.0.1")
    for mine, its in [
        ("ghcr.io", "evil.io"),
        ("docker.io", "docker.io.evil.net"),
        ("docker.io", "evildocker.io"),
        ("shop.co.uk", "evil.co.uk"),
        ("127.0.0.1", "1.0.0.1"),
        ("10.0.0.1", "9.0.0.1"),
        ("registry", "evil"),
        ("localhost", "127.0.0.1"),
    ]:
        assert not may_send(mine, its), (mine, its)


def test_challenges_are_read_in_every_form():
    [one] = parse_challenges('Bearer realm="https://a/t?x=\\"1\\"",service=s , scope="a,b"')
    assert (one.scheme, one.parameters) == (
        "bearer",
        {"realm": 'https://a/t?x="1"', "service": "s", "scope": "a,b"},
    )
    assert [one.scheme for one in parse_challenges('Basic realm="x", Bearer realm="y"')] == [
        "basic",
        "bearer",
    ]
    assert parse_challenges("") == ()
    assert parse_challenges("=,;\x00") == ()
    with pytest.raises(Failed):
        clean_token("a b")
