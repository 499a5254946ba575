"""Mutated runs, adapters, exports and data files, each given to a verb in a process with limits.

    python tests/hostile/fuzz.py [--trials 10000] [--seed 0] [--only KINDS] [--keep FOLDER] [--built FOLDER]

A verb may refuse a file (exit status 1 or 2) or find nothing wrong with it (0). It may not show a traceback,
compute for more than 10 seconds, take more than 4 GB, or touch a file outside of the folder that it works in.
A server has to refuse a folder, or to answer beside it until it is told to stop. Exits with 1 where one did
otherwise; the mutated folders that broke it are kept. What is mutated is made once in a folder, which several
processes may share: see `materials.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from materials import Material, build, materials

SECONDS, BYTES = 10, 4 << 30
_PATIENCE, _BUSY = 6 * SECONDS, 0.5
"""Seconds by the clock in which what is not hanging computes for so many: other work may go on beside."""
ALLOWED = (0, 1, 2)
_IMPORTED_ONCE = (
    *(
        "torch",
        "peft",
        "onnx",
        "sklearn.svm",
        "sklearn.linear_model",
        "pyarrow.parquet",
        "openpyxl",
        "jinja2",
    ),
    *("transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto"),
    *("matplotlib.backends.backend_svg", "newsdesk.cli", "newsdesk.api", "newsdesk.training.run"),
    *("newsdesk.exports.export", "newsdesk.reports.page", "newsdesk.evaluation.evaluate"),
    *("newsdesk.evaluation.audit.audit", "newsdesk.serving.server", "newsdesk.runs.label_changes"),
)
HOSTILE_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**400,
        0.5,
        -1e308,
        1e308,
        "",
        "x",
        "\0",
        "../../x",
        "/etc",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": {}},
        ["a"] * 1000,
        "é" * 5000,
        "(a+)+$",
        float("inf"),
        float("nan"),
        "\ud800",
    ),
)

HOSTILE_TOML = ("-5", "0", "1e308", "inf", "nan", '"x"', "true", "[]", "{}", "[" * 2000, "9" * 5000, "")


def mutated(content: bytes, name: str, draw: random.Random) -> bytes:
    """Another content of the file; JSON mostly keeps its syntax, and loses its sense."""
    if name.endswith((".json", ".jsonl")) and draw.random() < 0.8:
        try:
            return _mutated_json(content, name, draw)
        except ValueError:
            pass
    if name.endswith(".toml") and draw.random() < 0.8:
        lines = content.decode().splitlines()
        number = draw.randrange(len(lines))
        lines[number] = f"{lines[number].partition(' = ')[0]} = {draw.choice(HOSTILE_TOML)}"
        return "\n".join(lines).encode()
    if name.endswith(".safetensors") and draw.random() < 0.5:
        return _mutated_header(content, draw)
    changes: list[Callable[[bytes, random.Random], bytes]] = [_cut, _flipped, _repeated, _inserted, _emptied]
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(changes)(content, draw)
    return content


def _mutated_json(content: bytes, name: str, draw: random.Random) -> bytes:
    lines = content.decode().splitlines() if name.endswith("l") else [content.decode()]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    for _ in range(draw.randint(1, 2)):
        value = _with_a_change(value, draw)
    if draw.random() < 0.02:
        lines[number] = "[" * 100_000
    else:
        lines[number] = json.dumps(value)
    return "\n".join(lines).encode()


def _with_a_change(value: Any, draw: random.Random) -> Any:
    """The value with one entry, however deep, dropped, doubled or replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {other: entry for other, entry in value.items() if other != key}
        return {**value, key: _with_a_change(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] if draw.random() < 0.5 else value * 3
        return [*value[:place], _with_a_change(value[place], draw), *value[place + 1 :]]
    return draw.choice(HOSTILE_VALUES)


def _mutated_header(content: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.2 or length > len(content):
        return draw.choice((0, 2**31, 2**63 - 1, length + 1)).to_bytes(8, "little") + content[8:]
    header = json.loads(content[8 : 8 + length])
    new = json.dumps(_with_a_change(header, draw)).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 20)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _repeated(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    part = content[start : start + draw.randint(1, 2000)]
    return content[:start] + part * draw.choice((2, 50, 2000)) + content[start:]


def _inserted(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    chunk = draw.choice(
        (b"\0" * 40, b'"', b"\xff\xfe", b"\n" * 500, b"{" * 2000, b"1e999", "\u202e".encode() * 9)
    )
    return content[:place] + chunk + content[place:]


def _emptied(_content: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\n", b"{}", b"null", b"PK\x03\x04", b"\x1f\x8b"))


def mutate(folder: Path, draw: random.Random, outside: Path) -> str:
    """Change one file of the folder, and say which; runs and exports are often sealed again.

    Links lead to devices, to a file ``outside``, and to one that is not there yet.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    name = draw.choice(names)
    path = folder / name
    what = draw.random()
    if what < 0.03:
        path.unlink()
        os.mkfifo(path)
        return f"{name} a pipe"
    if what < 0.06:
        path.unlink()
        path.symlink_to(
            draw.choice(("/dev/zero", ".", "missing", "/proc/self/mem", outside, outside.with_name("new")))
        )
        return f"{name} -> {path.readlink()}"
    if what < 0.08:
        path.unlink()
        path.mkdir()
        return f"{name} a folder"
    path.write_bytes(mutated(path.read_bytes(), name, draw))
    if path.name.startswith("step-"):  # a checkpoint proves itself by the hash in its name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        path.rename(path.with_name(f"{path.name[:14]}{digest}.safetensors"))
        return name
    if name != "manifest.json" and draw.random() < 0.8:
        _seal(folder, name)
    return name


def _seal(folder: Path, name: str) -> None:
    """Put the new hash into every manifest that has the file."""
    from newsdesk.files import sha256_of

    for manifest in folder.rglob("manifest.json"):
        try:
            content = json.loads(manifest.read_bytes())
            files = content["files"]
        except (ValueError, TypeError, KeyError, RecursionError):  # mutated itself
            continue
        key = os.path.relpath(folder / name, manifest.parent)
        if isinstance(files, dict) and key in files:
            files[key] = sha256_of(folder / name)
            manifest.write_text(json.dumps(content))


def outcome(arguments: list[str], folder: Path, said: Path, answers: Path) -> str | None:
    """Run the command line in a fork of this process; what is wrong with how it went, if anything is."""
    since, used = time.monotonic(), 0.0
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, folder, said, answers)
    visitor = Visitor(child, folder, said) if arguments[0] == "serve" else None
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        if time.monotonic() - since > _PATIENCE:
            before, used, since = used, _computed(child), time.monotonic()
            if used < before + _BUSY:
                os.kill(child, 9)
                os.waitpid(child, 0)
                return f"does nothing for {_PATIENCE} seconds"
        if visitor is not None:
            visitor.look()
        time.sleep(0.002)
    text = said.read_text(errors="replace") if said.exists() else ""
    if "Traceback (most recent call last)" in text:
        last = [line for line in text.splitlines() if line.strip()][-1]
        return f"a traceback: {last[-160:]}"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"computed for more than {SECONDS} seconds"
    if (
        visitor is not None and visitor.has_left and os.WIFSIGNALED(status)
    ):  # as uvicorn ends, once all is done
        return visitor.wrong
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}: {text[-200:]}"
    if (code := os.waitstatus_to_exitcode(status)) not in ALLOWED:
        return f"exit status {code}: {text[-200:]}"
    return None if visitor is None else visitor.wrong


def _computed(process: int) -> float:
    """Seconds that a process has computed for."""
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


_EVENTS = ("model loaded", "model not loaded", "model removed")


class Visitor:
    """Asks a server once it is ready, brings it one more model where there is one, and tells it to stop."""

    def __init__(self, child: int, folder: Path, said: Path) -> None:
        self._child, self._folder, self._said = child, folder, said
        self._address, self._leave_at = "", 0.0
        self.wrong: str | None = None

    @property
    def has_left(self) -> bool:
        """Whether the server was told to stop."""
        return self._leave_at == float("inf")

    def look(self) -> None:
        """Do what is to be done now, if anything."""
        if self.has_left:
            return
        text = self._said.read_text(errors="replace") if self._said.exists() else ""
        if not self._address:
            lines = [line for line in text.splitlines() if '"event": "listening"' in line]
            if not lines or '"event": "ready"' not in text:
                return
            self._address = json.loads(lines[0])["address"]
            late = self._folder / "late"
            self._leave_at = time.monotonic() + (1.0 if late.exists() else 0.0)
            if late.exists():
                late.rename(self._folder / "served" / "it")
        if time.monotonic() > self._leave_at or any(f'"event": "{event}"' in text for event in _EVENTS):
            self._ask()
            self._leave_at = float("inf")
            os.kill(self._child, signal.SIGTERM)

    def _ask(self) -> None:
        body = json.dumps({"texts": ["goal after the market"]}).encode()
        request = urllib.request.Request(f"{self._address}/v1/classify", body)
        try:
            urllib.request.urlopen(request, timeout=20).read()
        except urllib.error.HTTPError as error:
            if error.code == 500:
                self.wrong = f"the server answers {error.code}: {error.read()[:200]!r}"
        except OSError as error:
            self.wrong = f"the server does not answer: {error}"


def _be_the_command(arguments: list[str], folder: Path, said: Path, answers: Path) -> None:
    code = 99
    try:
        stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.dup2(os.open(answers, os.O_RDONLY), 0)
        os.chdir(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["newsdesk", *arguments]
        from newsdesk.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def trials(work: Path, count: int, seed: int, only: str | None = None, keep: Path | None = None) -> list[str]:
    """Run so many trials on what `build` makes in ``work``, where it is not; a line for each fault."""
    if not (work / "files").is_dir():
        # In a process of its own: whoever has computed with threads cannot be forked.
        subprocess.run([sys.executable, __file__, "--build", str(work)], check=True, capture_output=True)
    found = [one for one in materials(work) if only is None or one.kind in only.split(",")]
    assert found, f"--only {only} names none of {', '.join(one.kind for one in materials(work))}"
    for module in _IMPORTED_ONCE:  # so that forks need not
        import_module(module)
    draw, broken = random.Random(seed), []
    witness = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    place, said = (work.with_name(f"{work.name}-{what}-{seed}") for what in ("place", "said"))
    for number in range(count):
        material = draw.choice(found)
        shutil.rmtree(place, ignore_errors=True)
        trial = Trial.prepared(material, work, place, draw)
        wrong = outcome(trial.arguments, place, said, work / "answers.txt")
        if wrong is None and witness != {path: path.stat().st_mtime_ns for path in work.rglob("*")}:
            wrong = "touched files outside of its folder"
        if wrong:
            broken.append(f"trial {number}: {material.kind}: {trial.changed}; {trial.command}: {wrong}")
            print(broken[-1], flush=True)
            if keep is not None:
                shutil.copytree(place, keep / f"{seed}-{number}", symlinks=True, ignore=_pipes)
                shutil.copyfile(said, keep / f"{seed}-{number}" / "said.txt")
    shutil.rmtree(place, ignore_errors=True)
    said.unlink(missing_ok=True)
    return broken


@dataclass(frozen=True)
class Trial:
    """What is given to the command line, what was changed in it, and the pattern of the command."""

    arguments: list[str]
    changed: str
    command: str

    @classmethod
    def prepared(cls, material: Material, work: Path, place: Path, draw: random.Random) -> Trial:
        """Copy a material to ``place``, and mutate it there."""
        command = draw.choice(material.commands)
        it = place / "it"
        shutil.copytree(material.folder, it)
        shutil.copytree(work / "run", place / "sound")
        shutil.copytree(work / "sets", place / "sound-sets")
        for journal in it.rglob("journal.jsonl"):  # of a folder that is somewhere else now
            journal.write_bytes(journal.read_bytes().replace(bytes(material.folder), bytes(it)))
        changed = mutate(it, draw, work / "outside.txt")
        names = {
            "it": it / changed.split()[0] if material.kind == "data" else it,
            "rows": work / "few.csv",
            "other": work / "other.csv",
            "sound": place / "sound",
            "sets": work / "few.jsonl",
            "sound_sets": place / "sound-sets",
            "exported": work / "export",
            "shared": work / "shared",
        }
        if "{it}/.." in command:  # it comes to a folder that is served
            it.rename(place / "late")
            shutil.copytree(work / "export", place / "served" / "export")
            names["it"] = place / "served" / "export"
        return cls(command.format(**names).split(), changed, command)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [
        name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()
    ]


def main() -> None:
    """Run as many trials as asked."""
    parser = argparse.ArgumentParser(description="Give mutated files to every verb.")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds of material, such as run,sets,data")
    parser.add_argument("--keep", type=Path, help="where to keep the folders that broke something")
    parser.add_argument("--built", type=Path, help="where what is mutated is, or is to be, made and kept")
    parser.add_argument("--build", type=Path, help="make what is to be mutated in this folder, and no more")
    asked = parser.parse_args()
    if asked.build:
        build(asked.build)
        return
    with tempfile.TemporaryDirectory(prefix="newsdesk-fuzz-") as folder:
        begun = time.monotonic()
        work = asked.built or Path(folder) / "work"
        broken = trials(work, asked.trials, asked.seed, asked.only, asked.keep)
    kinds = Counter(line.rpartition(": ")[2][:60] for line in broken)
    print(f"{asked.trials:,} trials in {time.monotonic() - begun:.0f} s, {len(broken)} broke something")
    for kind, times in kinds.most_common(20):
        print(f"{times:5d}  {kind}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
