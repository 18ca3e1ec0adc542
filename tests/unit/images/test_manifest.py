"""Any document is an image's or refused by one of our own errors, in a sentence fit for a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import images

from knarr.images import manifest
from knarr.images.auth import parse_challenges
from knarr.model.errors import Invalid, KnarrError, Unsupported
from knarr.model.names import parse_platform

LAYER = images.tar_bytes([images.Member("a", b"b")])
CONFIG = images.config_bytes([LAYER])
BLOBS, ENTRY = images.oci_blobs([LAYER], CONFIG)
FIELDS = "schemaVersion mediaType config layers manifests digest size platform annotations os architecture rootfs diff_ids"
KEYS = st.sampled_from(FIELDS.split())
WORDS = st.sampled_from(
    [*manifest.INDEXES, *manifest.MANIFESTS, manifest.OCI_CONFIG, manifest.OCI_LAYER, images.sha256(b"")]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def fit(error):
    assert error.message.isprintable()
    assert error.hint is None or error.hint.isprintable()
    assert len(error.message) < 600


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6), WORDS | st.just(""))
def test_any_document_as_a_manifest(document, media_type):
    document = {"schemaVersion": 2, **document}
    try:
        found = manifest.parse("it", json.dumps(document).encode(), media_type)
        if isinstance(found, manifest.Index):
            manifest.choose("it", found.entries, None)
    except KnarrError as error:
        fit(error)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_document_as_a_config(document):
    try:
        manifest.check_config("it", json.dumps(document).encode(), 0, None)
    except KnarrError as error:
        fit(error)


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with pytest.raises(KnarrError):
        manifest.parse("it", data)


@given(st.text(max_size=200))
def test_any_challenge(text):
    for challenge in parse_challenges(text):
        assert challenge.scheme == challenge.scheme.lower()


def test_words_of_a_stranger_do_not_reach_the_terminal():
    config = json.loads(CONFIG) | {"architecture": "\x1b]0;evil\x07" * 9}
    with pytest.raises(Unsupported, match="is for linux/unknown"):
        manifest.check_config("it", json.dumps(config).encode(), 1, None)


def test_the_platform_of_a_config():
    manifest.check_config("it", CONFIG, 1, None)
    with pytest.raises(KnarrError, match="not there for linux/arm64"):
        manifest.check_config("it", CONFIG, 1, parse_platform("arm64"))
    with pytest.raises(Invalid, match="names 1 layers, there are 2"):
        manifest.check_config("it", CONFIG, 2, None)
