"""The mover: splices workloads' pipes into log files. A byte is in the pipe or in the file, whenever this
is killed.

    keeper, daemon → mover    add ID STREAM… + descriptors · look · drop ID · drain ID    (keeper.mover_link)

All descriptors come from the holder or have a copy there; a mover that starts finds everything by `list
log/`. A stream that has ended is closed and deleted from the holder. A full disk keeps the bytes in the
pipe: the mover tries again with growing pauses. Out of scope: the files (`keeper.logwriter`),
reading them (`keeper.logs`).
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time

from knarr.keeper import protocol
from knarr.keeper.holder import HolderClient, listening
from knarr.keeper.logwriter import LogWriter
from knarr.keeper.stream import Stream
from knarr.keeper.waiting import Waiting
from knarr.kernel import fds as descriptors
from knarr.kernel import process


class Mover:
    def __init__(self, root: str, run: str, holder: HolderClient) -> None:
        self._root = root
        self._run = run
        self._holder = holder
        self._selector = selectors.EpollSelector()
        self._logs: dict[str, LogWriter] = {}
        self._streams: dict[str, dict[str, Stream]] = {}
        self._parked: set[Stream] = set()
        self._drains: dict[str, list[socket.socket]] = {}
        self._drops: dict[str, list[socket.socket]] = {}
        self._waiting = Waiting(run)
        self._listener = listening(holder, run, protocol.MOVER, socket.SOCK_SEQPACKET)

    def serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._look()
        self._waiting.forget_all_but(self._streams)
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.data is not None:
                    self._move(key.data)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._receive(key.fileobj)  # type: ignore[arg-type]
            self._retry()

    # moving

    def _move(self, stream: Stream) -> None:
        if stream.closed:
            # by a request earlier in this very turn of the selector; its numbers may be others' by now
            return
        self._step(stream)
        if stream.ended and (stream.name != "tty" or stream.workload in self._drops):
            self._close(stream)
        elif stream.retry_at and stream not in self._parked:
            self._selector.unregister(stream.source)
            self._parked.add(stream)
        self._settle(stream.workload)

    def _step(self, stream: Stream) -> None:
        stream.move()
        if stream.failure or self._waiting:
            # one of its streams may go on while the other waits
            reasons = [each.failure for each in self._streams.get(stream.workload, {}).values()]
            self._waiting.tell(stream.workload, stream.failure or next(filter(None, reasons), ""))

    def _close(self, stream: Stream) -> None:
        if stream in self._parked:
            self._parked.discard(stream)
        else:
            self._selector.unregister(stream.source)
        streams = self._streams[stream.workload]
        del streams[stream.name]
        self._holder.delete_all(stream.held_names())
        stream.close()
        if not streams:
            del self._streams[stream.workload]
            self._logs.pop(stream.workload).close()

    def _patience(self) -> float | None:
        if not self._parked:
            return None
        return max(0.0, min(stream.retry_at for stream in self._parked) - time.monotonic())

    def _retry(self) -> None:
        if not self._parked:
            return
        now = time.monotonic()
        for stream in [stream for stream in self._parked if stream.retry_at <= now]:
            if stream.closed:
                continue
            self._step(stream)
            if stream.retry_at == 0.0 and not stream.ended:
                self._parked.discard(stream)
                self._selector.register(stream.source, selectors.EVENT_READ, stream)
            elif stream.ended and (stream.name != "tty" or stream.workload in self._drops):
                self._close(stream)
            self._settle(stream.workload)

    # drains and drops

    def _settle(self, workload: str) -> None:
        """Answer those who wait for `workload` once its pipes are empty."""
        if workload not in self._drains and workload not in self._drops:
            return
        streams = self._streams.get(workload, {})
        if any(not stream.empty for stream in streams.values()):
            return
        for peer in self._drains.pop(workload, []):
            _answer(peer, "drained", workload)
        if workload in self._drops:
            self._drop(workload)

    def _drop(self, workload: str) -> None:
        for stream in list(self._streams.get(workload, {}).values()):
            self._close(stream)
        self._waiting.tell(workload, "")
        try:
            os.unlink(os.path.join(self._run, "logs", workload))
        except FileNotFoundError:
            pass
        for peer in self._drops.pop(workload):
            _answer(peer, "dropped", workload)

    def _finish(self, workload: str) -> None:
        """Empty its pipes now, as far as the disk lets us."""
        for stream in list(self._streams.get(workload, {}).values()):
            stream.move()
            while not stream.empty and not stream.retry_at:
                stream.move()
        self._settle(workload)

    # requests

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, None)

    def _receive(self, sock: socket.socket) -> None:
        if sock.fileno() < 0:
            return
        try:
            data, fds = descriptors.recv_fds(sock, 4096, 8)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if data:
            self._obey(sock, protocol.decode_words(data), fds)
        else:
            self._selector.unregister(sock)
            sock.close()

    def _obey(self, sock: socket.socket, words: list[str], fds: list[int]) -> None:
        verb, *rest = words
        if verb == "add" and len(rest) == len(fds) + 1:
            self._add(rest[0], dict(zip(rest[1:], fds, strict=True)))
            return
        descriptors.close_all(fds)
        if verb == "look":
            self._look()
        elif verb in ("drain", "drop") and len(rest) == 1:
            # the keeper's `add` was sent before the daemon could ask: it lies in another socket
            self._catch_up(sock)
            waiting = self._drains if verb == "drain" else self._drops
            waiting.setdefault(rest[0], []).append(sock)
            self._finish(rest[0])

    def _catch_up(self, but: socket.socket) -> None:
        self._accept()
        for key in list(self._selector.get_map().values()):
            if key.data is None and key.fileobj not in (self._listener, but):
                self._receive(key.fileobj)  # type: ignore[arg-type]

    # streams

    def _look(self) -> None:
        """Take up what the holder has and we don't."""
        found: dict[str, set[str]] = {}
        for name in self._holder.list("log/"):
            _, workload, stream = name.split("/", 2)
            found.setdefault(workload, set()).add(stream)
        for workload, names in found.items():
            self._recover(workload)
            for group in (("out",), ("err",), ("tty", "ttypipe-r", "ttypipe-w")):
                if names.issuperset(group) and group[0] not in self._streams.get(workload, {}):
                    held = {name: self._holder.get(f"log/{workload}/{name}") for name in group}
                    self._add(workload, {name: fd for name, fd in held.items() if fd is not None})

    def _add(self, workload: str, named: dict[str, int]) -> None:
        streams = self._streams.setdefault(workload, {})
        log = self._logs.get(workload)
        if log is None:
            log = self._logs[workload] = LogWriter(self._folder(workload))
        for stream in _streams(workload, named, log):
            if stream.name in streams:
                stream.close()
                continue
            streams[stream.name] = stream
            self._selector.register(stream.source, selectors.EVENT_READ, stream)
            if stream.name == "tty":
                # a mover killed half-way left bytes in the pipe, and the terminal may stay silent now
                self._move(stream)

    def _recover(self, workload: str) -> None:
        """What the mover before this one moved without recording it."""
        if workload in self._logs:
            return
        log = self._logs[workload] = LogWriter(self._folder(workload))
        try:
            log.recover()
        except OSError:
            # a full disk: the next byte, or the next mover, tries again
            pass

    def _folder(self, workload: str) -> str:
        try:
            return os.readlink(os.path.join(self._run, "logs", workload))
        except FileNotFoundError:
            return os.path.join(self._root, "workloads", workload, "log")


def _streams(workload: str, named: dict[str, int], log: LogWriter) -> list[Stream]:
    """Of whole groups only; what can't be used is closed."""
    made = []
    if {"tty", "ttypipe-r", "ttypipe-w"} <= named.keys():
        pipe = (named.pop("ttypipe-r"), named.pop("ttypipe-w"))
        made.append(Stream(workload, "tty", named.pop("tty"), log, pipe=pipe))
    made += [Stream(workload, name, named.pop(name), log) for name in ("out", "err") if name in named]
    descriptors.close_all(list(named.values()))
    return made


def _answer(peer: socket.socket, *words: str) -> None:
    try:
        peer.send(protocol.encode_words(words), socket.MSG_NOSIGNAL)
    except OSError:
        pass


def main() -> int:
    root, run = sys.argv[1:3]
    process.set_name("knarr-mover")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    Mover(root, run, HolderClient(run)).serve()
    return 0
