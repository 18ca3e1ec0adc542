"""The user's terminal: size, raw mode, the keys that detach from it. Out of scope: the stream (`streams`)."""

from __future__ import annotations

import os

from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_CONTROL_SYMBOLS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def size(fd: int = 0) -> tuple[int, int] | None:
    """(columns, rows), or None where there is no terminal."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return None
    return (found.columns, found.lines) if found.columns and found.lines else None


class Raw:
    """`with Raw(0):` every key goes to the program; the old mode comes back whatever happens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[object] | None = None

    def __enter__(self) -> None:
        if not os.isatty(self._fd):
            return
        import termios
        import tty

        self._before = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or plain letters. Raises `Invalid`."""
    keys = bytearray()
    for word in text.split(","):
        if len(word) == 1 and word.isascii():
            keys += word.encode()
            continue
        letter = word.removeprefix("ctrl-")
        if letter == word or len(letter) != 1:
            raise Invalid(f"--detach-keys: {text!r}", hint="letters or ctrl-LETTER, joined by commas")
        if letter.isascii() and letter.isalpha():
            keys.append(ord(letter.lower()) - 96)
        elif letter in _CONTROL_SYMBOLS:
            keys.append(_CONTROL_SYMBOLS[letter])
        else:
            raise Invalid(f"--detach-keys: {text!r}", hint="ctrl-a to ctrl-z, ctrl-@ [ \\ ] ^ _")
    return bytes(keys)


class DetachKeys:
    """Watches typed bytes for the key sequence; holds back its beginning until the next key decides."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on; `detached` becomes true when the sequence is complete."""
        if not self._keys:
            return data
        out = bytearray()
        for byte in data:
            candidate = self._held + bytes((byte,))
            while candidate and not self._keys.startswith(candidate):
                out.append(candidate[0])
                candidate = candidate[1:]
            if candidate == self._keys:
                self.detached = True
                break
            self._held = candidate
        return bytes(out)
