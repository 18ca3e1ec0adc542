"""An upgrade of the keeper is one only when its exec has closed the line."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from knarr.keeper import asking, protocol
from knarr.model.errors import Unavailable


def serve(listener: socket.socket, *answers: dict[str, object]) -> None:
    with listener, listener.accept()[0] as line:
        seq = protocol.decode(protocol.receive(line)[0])["seq"]
        for answer in answers:
            line.send(protocol.encode({"seq": seq, **answer}))


@pytest.mark.parametrize("fails", [False, True])
def test_an_exec_that_fails_after_the_answer_is_told(tmp_path, fails):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.path.join(tmp_path, protocol.KEEPER))
    listener.listen()
    failure = {"type": "error", "step": "upgrade", "errno": errno.ENOENT, "message": "python: not there"}
    keeper = threading.Thread(target=serve, args=(listener, {"type": "ok"}, *([failure] if fails else [])))
    keeper.start()
    try:
        if fails:
            with pytest.raises(Unavailable, match="not there"):
                asking.upgrade(str(tmp_path))
        else:
            asking.upgrade(str(tmp_path))
    finally:
        keeper.join()
