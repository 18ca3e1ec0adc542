"""A keeper that goes away while it is asked is one to be asked again, not the end of what is under way."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from knarr.keeper import asking, protocol

if TYPE_CHECKING:
    from pathlib import Path


def test_a_keeper_that_ends_before_its_answer_is_an_os_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / protocol.KEEPER))
        listener.listen()

        def end() -> None:
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.close()

        thread = threading.Thread(target=end)
        thread.start()
        with pytest.raises(OSError, match="the keeper ended"):
            asking.make_equal(str(tmp_path))
        thread.join()
