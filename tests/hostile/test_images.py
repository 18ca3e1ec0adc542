"""Hostile manifests, configs, compressions and archives, by `load` and from a registry that serves anything."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

from knarr.model.errors import KnarrError
from support import corpus_images as corpus
from support import images
from support.hostile import Reply, hostile_registry

pytestmark = pytest.mark.root
FULL = os.environ.get("KNARR_FULL") == "1"
_LONGEST = 15
_KINDS = ("invalid", "unsupported", "not_found", "unavailable", "failed")


def outcome(host, lines) -> str:
    """Empty for an image that was taken (and is removed again), or the error."""
    try:
        *_, last = lines
    except KnarrError as error:
        return f"{error.kind}: {error.message}"
    assert host.client.image(last["image"]["id"])["config"]
    host.client.remove_image(last["image"]["id"], force=True)
    return ""


def fault(refused: str | None, got: str) -> str:
    if refused is None:
        return got
    kind, _, message = got.partition(": ")
    clean = kind in _KINDS and message.isprintable() and len(message) < 1000 and "internal" not in message
    return "" if clean and any(text in message for text in refused.split("|")) else got or "it was taken"


def every(host, cases, enter) -> list[tuple[str, str | None, str]]:
    wrong = []
    for name, refused, subject in cases:
        began = time.monotonic()
        if found := fault(refused, outcome(host, enter(subject))):
            wrong.append((name, refused, found[:300]))
        if time.monotonic() - began > _LONGEST:
            wrong.append((name, refused, "took too long"))
    return wrong


def test_hostile_images_by_load(host, unharmed):
    def load(case: corpus.ImageCase):
        blobs = {
            digest: data
            for digest, data in case.blobs.items()
            if re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
        }
        return host.client.load([images.tar_bytes(images.oci_members(blobs, [case.entry]))])

    cases = [(case.name, case.refused, case) for case in corpus.cases()]
    wrong = every(host, cases, load)
    assert wrong == [], "\n".join(map(str, wrong))


def test_hostile_archives_by_load(host, unharmed):
    cases = [(name, refused, data) for name, data, refused in corpus.archives()]
    assert every(host, cases, lambda data: host.client.load([data])) == []


def test_hostile_images_by_pull(host, unharmed):
    with hostile_registry() as server:

        def pull(case: corpus.ImageCase):
            server.routes.clear()
            for digest, data in case.blobs.items():
                server.routes[f"/v2/a/blobs/{digest}"] = Reply(body=data)
                kind = _kind(data) or case.entry["mediaType"]
                reply = Reply(body=data, headers={"Content-Type": kind})
                server.routes[f"/v2/a/manifests/{digest}"] = reply
                if digest == case.entry["digest"]:
                    server.routes["/v2/a/manifests/1"] = reply
            return host.client.pull(f"{server.host}/a:1", insecure=True)

        # what stays short is asked for again, with pauses: `test_a_layer_that_stays_short_is_given_up`
        cases = [case for case in corpus.cases() if FULL or case.name != "manifest-layer-size-more"]
        wrong = every(host, [(case.name, case.refused, case) for case in cases], pull)
    assert wrong == [], "\n".join(map(str, wrong))


def _kind(data: bytes) -> str:
    """The media type that a document says of itself."""
    try:
        found = json.loads(data).get("mediaType")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
