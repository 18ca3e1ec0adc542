"""An upload whose client has gone writes nowhere else."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile

import pytest

from knarr.engine.drivers import archives


def one(name: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return made.getvalue()[:512]


def test_a_descriptor_with_the_same_number_gets_nothing_of_it(tmp_path) -> None:
    for name in ("meant", "other"):
        (tmp_path / name).mkdir()

    async def play() -> None:
        asked, gone, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        pieces = [one("first/a"), one("second/b"), b""]

        async def read() -> bytes:
            if len(pieces) == 2:
                asked.set()
                await gone.wait()
            if len(pieces) == 1:
                over.set()
            return pieces.pop(0)

        root = os.open(tmp_path / "meant", os.O_PATH | os.O_DIRECTORY)
        upload = asyncio.ensure_future(archives.put(root, "w", "/", read))
        await asked.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        os.close(root)
        other = os.open(tmp_path / "other", os.O_PATH | os.O_DIRECTORY)
        assert other == root
        gone.set()
        await over.wait()
        os.close(other)

    asyncio.run(play())
    assert os.listdir(tmp_path / "other") == []
    assert sorted(os.listdir(tmp_path / "meant")) == ["first", "second"]
