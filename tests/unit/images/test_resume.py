"""An interrupted pull is gone on with by the next, also after SIGKILL; wrong bytes of before are dropped."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import subprocess
import sys

import pytest
from tests.support import layers as support

from knarr.images.config import GZIP_LAYER_TYPE
from knarr.images.store import ImageStore
from knarr.model.errors import Invalid, Unavailable

TAR = support.tar(support.member("big", random.Random(4).randbytes(3_000_000)))
BLOB = gzip.compress(TAR, mtime=0)


def _layer(asked: list[int], stop: int | None = None, at_stop=None):
    def resume(start: int):
        def pieces():
            asked.append(start)
            for at in range(start, len(BLOB), 50_000):
                if stop is not None and at >= stop:
                    at_stop() if at_stop else None
                    raise Unavailable("the registry went away")
                yield BLOB[at : at + 50_000]

        return contextlib.nullcontext(pieces())

    return support.layer(
        TAR, compress=lambda _: BLOB, media_type=GZIP_LAYER_TYPE, open=lambda: resume(0), resume=resume
    )


def _ingest(store, asked, **how):
    return store.ingest(support.source([TAR], layers=[_layer(asked, **how)]))


def _partials(store) -> list[int]:
    if not os.path.isdir(store.partials):
        return []
    return [os.path.getsize(os.path.join(store.partials, name)) for name in os.listdir(store.partials)]


def test_goes_on_where_it_stopped(tmp_path):
    store = ImageStore(str(tmp_path / "store"))
    asked: list[int] = []
    for stop in (1_000_000, 2_000_000):
        with pytest.raises(Unavailable, match="went away"):
            _ingest(store, asked, stop=stop)
        assert _partials(store) == [stop]
    store.close()
    store = ImageStore(str(tmp_path / "store"))
    image = _ingest(store, asked)
    assert asked == [0, 1_000_000, 2_000_000]
    assert _partials(store) == []
    with open(store.blob(support.digest(BLOB)), "rb") as file:
        assert file.read() == BLOB
    assert image.layers == (support.digest(TAR),)
    store.close()


def test_bytes_that_do_not_fit_are_dropped(tmp_path):
    store = ImageStore(str(tmp_path / "store"))
    asked: list[int] = []
    with pytest.raises(Unavailable):
        _ingest(store, asked, stop=1_000_000)
    with open(os.path.join(store.partials, os.listdir(store.partials)[0]), "r+b") as file:
        file.seek(500_000)
        file.write(b"damage")
    with pytest.raises(Invalid):
        _ingest(store, asked)
    _ingest(store, asked)
    assert asked == [0, 1_000_000, 0]
    store.collect()
    assert _partials(store) == []
    store.close()


CHILD = """
import os, signal, sys
from tests.unit.images.test_resume import _ingest
from knarr.images.store import ImageStore
_ingest(ImageStore(sys.argv[1]), [], stop=1_500_000, at_stop=lambda: __import__("time").sleep(0.3) or os.kill(os.getpid(), signal.SIGKILL))
"""


def test_after_a_kill(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    store = ImageStore(str(tmp_path / "store"))
    asked: list[int] = []
    _ingest(store, asked)
    assert 0 < asked[0] <= 1_500_000
    assert _partials(store) == []
    store.close()
