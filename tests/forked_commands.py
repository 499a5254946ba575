"""A process that has imported what training needs and forks for each command, so that none imports it again.

The script `newsdesk` that `ForkedCommands` puts on a path hands its arguments, folder, environment and
streams to that process, which answers with the exit status. A test of the installed script does not use it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

IMPORTED_ONCE = (
    *("torch", "peft", "onnx", "sklearn.svm", "sklearn.linear_model", "pyarrow.parquet", "jinja2"),
    *("transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto"),
    *("matplotlib.backends.backend_svg", "newsdesk.cli", "newsdesk.api", "newsdesk.training.run"),
    *("newsdesk.exports.export", "newsdesk.reports.page", "newsdesk.evaluation.evaluate"),
)

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    line.sendall(asked)
    sys.exit(int(line.recv(16)))
"""


class ForkedCommands:
    """``with ForkedCommands(folder) as path``: a folder for PATH whose `newsdesk` is run by forks."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "commands.socket")
        self.scripts = folder / "bin"

    def __enter__(self) -> Path:
        self.scripts.mkdir()
        script = self.scripts / "newsdesk"
        script.write_text(CLIENT.format(python=sys.executable, address=self.address))
        script.chmod(0o755)
        self.server = subprocess.Popen(
            [sys.executable, __file__, self.address],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == b"ready\n"
        return self.scripts

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.kill()
        self.server.communicate()


def serve(address: str) -> NoReturn:
    """Fork for every command that a client asks for."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        for module in IMPORTED_ONCE:
            import_module(module)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for whoever has answered
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            line, _ = listening.accept()
            with line:
                if os.fork() == 0:
                    listening.close()
                    answer(line)


def answer(line: socket.socket) -> NoReturn:
    """Be the command in a fork of this process, and tell the client how it ended."""
    length, streams, _, _ = socket.recv_fds(line, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(length, "big"):
        asked += line.recv(1 << 16)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        line.close()
        be_the_command(asked, streams)
    _, status = os.waitpid(child, 0)
    line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def be_the_command(asked: bytes, streams: list[int]) -> NoReturn:
    """Run the command line with what the client was given."""
    code = 1
    try:
        arguments, folder, environment = json.loads(asked)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["newsdesk", *arguments]
        from newsdesk.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
