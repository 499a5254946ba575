"""Keys of a terminal, one at a time, and lines that are typed among them."""

from __future__ import annotations

import sys
from typing import Any

from newsdesk.data.words import isolated


class Keys:
    """Keys of a terminal as they are pressed, without waiting for Enter."""

    def __init__(self) -> None:
        self._before: Any = None
        if sys.platform != "win32":
            import termios

            self._before = termios.tcgetattr(sys.stdin.fileno())

    def restore(self) -> None:
        """Let the terminal show what is typed again, and wait for Enter."""
        if sys.platform != "win32":
            import termios

            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    def read(self) -> str:
        """The next key: Enter is ``\\n``, the end of input ``\\x04``, what has no letter is empty."""
        if sys.platform == "win32":
            import msvcrt

            key = msvcrt.getwch()
            if key in ("\x00", "\xe0"):
                msvcrt.getwch()
                return ""
            if key == "\x03":
                raise KeyboardInterrupt
        else:
            key = self._pressed()
        return "\n" if key == "\r" else key

    if sys.platform != "win32":

        def _pressed(self) -> str:
            import os
            import select
            import termios
            import tty

            terminal_in = sys.stdin.fileno()
            if (
                termios.tcgetattr(terminal_in)[3] & termios.ICANON
            ):  # at first, and when a shell has stopped us
                tty.setcbreak(terminal_in, termios.TCSADRAIN)
            first = os.read(terminal_in, 1)
            if first == b"\x1b":  # an arrow or function key is a sequence: [ or O, then up to a letter or ~
                sequence = b""
                while select.select([terminal_in], [], [], 0.02)[0]:
                    sequence += os.read(terminal_in, 1)
                    if len(sequence) > 1 and b"@" <= sequence[-1:] <= b"~":
                        return ""
                return "\x1b"
            if not first:
                return "\x04"
            rest = 3 if first >= b"\xf0" else 2 if first >= b"\xe0" else 1 if first >= b"\xc0" else 0
            return (first + (os.read(terminal_in, rest) if rest else b"")).decode(errors="replace")

    def show(self, text: str) -> None:
        """Write to the terminal without a line end."""
        sys.stderr.write(text)
        sys.stderr.flush()

    def line(self, prompt: str) -> str | None:
        """What is typed up to Enter; None where Escape ends it."""
        typed = ""
        while True:
            self.show(f"\r\x1b[K{prompt}{isolated(typed)}")
            key = self.read()
            if key in ("\x1b", "\x04"):
                typed, key = "", "\n"
            if key == "\n":
                self.show("\r\x1b[K")
                return typed.strip() or None
            if key in ("\x7f", "\b"):
                typed = typed[:-1]
            elif key.isprintable():
                typed += key
