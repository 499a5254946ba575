"""Mutated runs, adapters, exports and data files, each given to a verb in a process with limits.

    python tests/hostile/fuzz.py [--trials 10000] [--seed 0] [--only KIND] [--keep FOLDER]

A verb may refuse a file (exit status 1 or 2) or find nothing wrong with it (0). It may not show a traceback,
compute for more than 10 seconds, take more than 4 GB, or touch a file outside of the folder that it works in.
Exits with 1 where one did; the mutated folders that broke it are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
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
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS, BYTES = 10, 4 << 30
_PATIENCE = 6 * SECONDS
"""Seconds by the clock until what does not compute counts as hanging; other work may go on beside."""
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


@dataclass(frozen=True)
class Material:
    """Something that people exchange: how it is made, and the verbs that read it.

    Attributes:
        kind: its name.
        folder: where the whole one is.
        commands: argument lists; ``{it}`` is the mutated folder or file, ``{rows}`` a sound file of rows.
    """

    kind: str
    folder: Path
    commands: tuple[str, ...]


def build(work: Path) -> None:
    """A trained, evaluated and exported run, its adapter alone, and files of rows, in the folder ``work``."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest
    import newsdesk
    from topics import topical_rows

    work.mkdir(parents=True)
    base = conftest._build_base(work / "base", "bert")
    rows = topical_rows(1000, 5)
    for name, some in (("rows.csv", rows), ("few.csv", rows[:40])):
        with (work / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([("label", "text"), *some])
    flags = {"model.base": str(base), "data.train": str(work / "rows.csv"), "model.max_length": 32}
    run = newsdesk.train("quick", out=work / "run", flags={**flags, "training.epochs": 2.0}).path
    newsdesk.evaluate(run, str(work / "few.csv"))
    newsdesk.export(run, "onnx-fp32", out=work / "export")
    newsdesk.export(run, "merged", out=work / "merged")
    newsdesk.train("quick", out=work / "begun", flags={**flags, "training.epochs": 2.0}, observe=_stop_at(20))
    _cross_validate_in_part(work / "folds", {**flags, "data.folds": 3, "training.epochs": 2.0})
    newsdesk.export(run, "onnx-int8", max_loss=100, max_loss_upper=100)
    newsdesk.train("quick", out=work / "stacked", flags={**flags, "model.linear": "stack"})
    newsdesk.sweep("quick", out=work / "sweep", flags=flags, vary=["lora.rank=1,4"])
    sets = _rows_of_several(rows)
    (work / "sets.jsonl").write_text("\n".join(map(json.dumps, sets)))
    (work / "few.jsonl").write_text("\n".join(map(json.dumps, sets[:40])))
    windows = {"data.train": str(work / "sets.jsonl"), "model.max_length": 12, "model.long_texts": "windows"}
    run = newsdesk.train("quick", out=work / "sets", flags={**flags, **windows, "training.epochs": 3.0}).path
    newsdesk.evaluate(run, str(work / "few.jsonl"))
    newsdesk.export(run, "onnx-fp32", out=work / "sets-export")
    shutil.copytree(work / "run" / "adapter", work / "adapter")
    (work / "files").mkdir()
    for name, content in _files_of_rows(rows[:60]):
        (work / "files" / name).write_bytes(content)


def _rows_of_several(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Neighbouring rows joined, so that texts have one label or two, and every ninth none."""
    pairs = zip(rows, [*rows[1:], rows[0]], strict=True)
    joined = [
        {"text": f"{a} {b}" if number % 3 else a, "labels": sorted({of_a, of_b} if number % 3 else {of_a})}
        for number, ((of_a, a), (of_b, b)) in enumerate(pairs)
    ]
    return [{**row, "labels": []} if number % 9 == 8 else row for number, row in enumerate(joined)]


def _cross_validate_in_part(out: Path, flags: dict[str, Any]) -> None:
    """A training that was interrupted in its second fold."""
    import newsdesk
    from newsdesk.errors import UserError

    def interrupt(done: int, _total: int | None, what: str, _unit: str = "bytes", /) -> None:
        if what.endswith("fold 2 of 3") and done == 20:
            signal.raise_signal(signal.SIGTERM)

    with suppress(UserError):
        newsdesk.train("quick", out=out, flags=flags, progress=interrupt)


def _stop_at(step: int) -> Callable[[Any], None]:
    """An observer that asks the training to stop after so many steps."""

    def observe(event: Any) -> None:
        if type(event).__name__ == "Step" and event.step == step:
            signal.raise_signal(signal.SIGTERM)

    return observe


def materials(work: Path) -> list[Material]:
    """What `build` left in ``work``, with the verbs that read it."""
    of_both = (
        "predict {it} goal",
        "evaluate {it} --data {rows}",
        "explain {it} goal",
        "calibrate {it} --data {rows} --learned-rows keep",
    )
    of_runs = (
        "predict {it} goal --abstain 0.2 --sets 0.9 --off-topic 0.1",
        "predict {it} goal --engine torch",
        "report {it} --data {rows}",
        "compare {it} {sound} --data {rows}",
        "train --out {it} --resume",
        "export {it} --to merged --out out --data {rows} --learned-rows keep",
    )
    of_data = (
        "data check {it}",
        "predict {sound} --input {it} --output out.csv",
        "predict {exported} --input {it} --output out.jsonl",
        "predict {exported} --input {it} --format ninjs --output out.json",
        "evaluate {sound} --data {it}",
        "evaluate {sound_sets} --data {it}",
        f"train --base {work / 'base'} --data {{it}} --out out --dry-run",
    )
    of_sets = (
        *(command.format(it="{it}", rows="{sets}") for command in of_both),
        "predict {it} goal --abstain 0.2 --off-topic 0.1",
        "predict {it} --input {sets} --output out.csv --indicators",
        "compare {it} {sound_sets} --split test",
    )
    imported = f"import-adapter {{it}} --base {work / 'base'} --labels Business,Science,Sports --out out"
    return [
        Material("run", work / "run", of_both + of_runs),
        Material("export", work / "export", (*of_both, "predict {it} --input {rows} --output out.csv")),
        Material("merged", work / "merged", of_both),
        Material("stacked", work / "stacked", (*of_both, *of_runs, "calibrate {it} --no-stack")),
        Material("sets", work / "sets", (*of_sets, "train --out {it} --resume", "report {it} --data {sets}")),
        Material("sets-export", work / "sets-export", of_sets),
        Material("sweep", work / "sweep", ("sweep --out {it}", "train --out {it} --resume")),
        Material("folds", work / "folds", ("train --out {it} --resume", "predict {it} goal")),
        Material("begun", work / "begun", ("train --out {it} --resume", "predict {it} goal")),
        Material("adapter", work / "adapter", (imported,)),
        Material("data", work / "files", of_data),
    ]


def _files_of_rows(rows: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    from openpyxl import Workbook
    from pyarrow import parquet

    text = io.StringIO()
    csv.writer(text).writerows([("label", "text"), *rows])
    plain = text.getvalue().encode()
    objects = [{"label": label, "text": text} for label, text in rows]
    yield "rows.csv", plain
    yield "rows.tsv", plain.replace(b",", b"\t")
    yield "rows.csv.gz", gzip.compress(plain)
    yield "rows.jsonl", "\n".join(map(json.dumps, objects)).encode()
    yield "rows.json", json.dumps(objects).encode()
    items = [
        {
            "uri": f"urn:x:{number}",
            "versionCreated": "2026-05-01T08:00:00Z",
            "headlines": [{"role": "main", "value": text}],
            "bodies": [{"contentType": "text/html", "value": f"<p>{text} &amp; <b>more</b></p>"}],
            "subjects": [{"name": label, "uri": "http://cv.iptc.org/newscodes/mediatopic/15000000"}],
        }
        for number, (label, text) in enumerate(rows)
    ]
    sets = _rows_of_several(rows)
    yield "sets.jsonl", "\n".join(map(json.dumps, sets)).encode()
    listed = io.StringIO()
    csv.writer(listed).writerows([("labels", "text"), *((row["labels"], row["text"]) for row in sets)])
    yield "sets.csv", listed.getvalue().encode()
    yield "items.json", json.dumps(items).encode()
    yield "items.xml", _newsml(rows).encode()
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("rows.csv", plain)
        yield "rows.zip", stream.getvalue()
    with io.BytesIO() as stream:
        parquet.write_table(pa.Table.from_pylist(objects), stream)
        yield "rows.parquet", stream.getvalue()
    with io.BytesIO() as stream:
        book = Workbook()
        for row in [("label", "text"), *rows]:
            book.active.append(row)
        book.save(stream)
        yield "rows.xlsx", stream.getvalue()


def _newsml(rows: list[tuple[str, str]]) -> str:
    items = "".join(
        f'<newsItem guid="urn:x:{number}"><contentMeta><subject qcode="x:1"><name>{label}</name></subject>'
        f'<headline>{text}</headline></contentMeta><contentSet><inlineXML contenttype="application/nitf+xml">'
        f"<nitf><body><body.content><p>{text}</p></body.content></body></nitf></inlineXML></contentSet></newsItem>\n"
        for number, (label, text) in enumerate(rows)
    )
    return (
        f'<newsMessage xmlns="http://iptc.org/std/nar/2006-10-01/"><itemSet>{items}</itemSet></newsMessage>'
    )


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


def mutate(folder: Path, draw: random.Random) -> str:
    """Change one file of the folder, and say which; runs and exports are often sealed again."""
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
        path.symlink_to(draw.choice(("/dev/zero", "/etc/passwd", ".", "missing", "/proc/self/mem")))
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


def outcome(arguments: list[str], folder: Path, said: Path) -> str | None:
    """Run the command line in a fork of this process; what is wrong with how it went, if anything is."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, folder, said)
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        if time.monotonic() - begun > _PATIENCE:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return f"still there after {_PATIENCE} seconds"
        time.sleep(0.002)
    text = said.read_text(errors="replace")
    if "Traceback (most recent call last)" in text:
        last = [line for line in text.splitlines() if line.strip()][-1]
        return f"a traceback: {last[:120]}"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"computed for more than {SECONDS} seconds"
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}: {text[-200:]}"
    if (code := os.waitstatus_to_exitcode(status)) not in ALLOWED:
        return f"exit status {code}: {text[-200:]}"
    return None


def _be_the_command(arguments: list[str], folder: Path, said: Path) -> None:
    code = 99
    try:
        stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
    """Run so many trials; a line for each that broke something."""
    # In a process of its own: whoever has computed with threads cannot be forked.
    subprocess.run([sys.executable, __file__, "--build", str(work)], check=True, capture_output=True)
    found = materials(work)
    for module in _IMPORTED_ONCE:  # so that forks need not
        import_module(module)
    draw, broken = random.Random(seed), []
    witness = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    place = work.with_name(f"{work.name}-place")
    for number in range(count):
        material = draw.choice([one for one in found if only in (None, one.kind)])
        shutil.rmtree(place, ignore_errors=True)
        it = place / "it"
        shutil.copytree(material.folder, it)
        shutil.copytree(work / "run", place / "sound")
        shutil.copytree(work / "sets", place / "sound-sets")
        changed = mutate(it, draw)
        target = it / changed.split()[0] if material.kind == "data" else it
        command = draw.choice(material.commands)
        names = {
            "it": target,
            "rows": work / "few.csv",
            "sound": place / "sound",
            "sets": work / "few.jsonl",
            "sound_sets": place / "sound-sets",
            "exported": work / "export",
        }
        arguments = command.format(**names).split()
        wrong = outcome(arguments, place, work.with_name(f"{work.name}-said"))
        if wrong is None and witness != {path: path.stat().st_mtime_ns for path in work.rglob("*")}:
            wrong = "touched files outside of its folder"
        if wrong:
            broken.append(f"trial {number}: {changed}; {command}: {wrong}")
            print(broken[-1], flush=True)
            if keep is not None:
                shutil.copytree(place, keep / str(number), symlinks=True, dirs_exist_ok=True, ignore=_pipes)
    shutil.rmtree(place, ignore_errors=True)
    return broken


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [
        name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()
    ]


def main() -> None:
    """Run as many trials as asked."""
    parser = argparse.ArgumentParser(description="Give mutated files to every verb.")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a kind of material, such as run, sets or data")
    parser.add_argument("--keep", type=Path, help="where to keep the folders that broke something")
    parser.add_argument("--build", type=Path, help="make what is to be mutated in this folder, and no more")
    asked = parser.parse_args()
    if asked.build:
        build(asked.build)
        return
    with tempfile.TemporaryDirectory(prefix="newsdesk-fuzz-") as folder:
        begun = time.monotonic()
        broken = trials(Path(folder) / "work", asked.trials, asked.seed, asked.only, asked.keep)
    kinds = Counter(line.rpartition(": ")[2][:60] for line in broken)
    print(f"{asked.trials:,} trials in {time.monotonic() - begun:.0f} s, {len(broken)} broke something")
    for kind, times in kinds.most_common(20):
        print(f"{times:5d}  {kind}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
