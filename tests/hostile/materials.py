"""What people exchange, made by the real writers, and the verbs that read each: what `fuzz.py` mutates."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = "Business,Science,Sports"
ANSWERS = "1\n2\ns\nu\n1\n+ Weather\n3\nu\n2\nq\n"
"""What standard input says, for whoever labels."""


@dataclass(frozen=True)
class Material:
    """Something that people exchange: how it is made, and the verbs that read it.

    Attributes:
        kind: its name.
        folder: where the whole one is.
        commands: argument lists; ``{it}`` is the mutated folder or file, ``{rows}`` a sound file of rows.
            One that serves the folder around ``{it}`` begins without it.
    """

    kind: str
    folder: Path
    commands: tuple[str, ...]


def build(work: Path) -> None:
    """Trained, evaluated and exported runs, a base, files of rows, and what else is made of these."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest
    import newsdesk
    from newsdesk.serving.access import make_token
    from shared_exports import train_on_top
    from topics import topical_rows

    work.mkdir(parents=True)
    base = conftest._build_base(work / "base", "bert")
    rows = topical_rows(1000, 5)
    (work / "answers.txt").write_text(ANSWERS)
    (work / "outside.txt").write_text("nobody may cut off or add to this line")
    for name, some in (("rows.csv", rows), ("few.csv", rows[:40]), ("other.csv", topical_rows(60, 6))):
        with (work / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([("label", "text"), *some])
    flags = {"model.base": str(base), "data.train": str(work / "rows.csv"), "model.max_length": 32}
    run = newsdesk.train("quick", out=work / "run", flags={**flags, "training.epochs": 2.0}).path
    newsdesk.evaluate(run, str(work / "few.csv"))
    newsdesk.export(run, "onnx-fp32", out=work / "export")
    newsdesk.export(run, "merged", out=work / "merged")
    on_top = train_on_top(base, work / "rows.csv", work / "on-top", "training.epochs=4")
    newsdesk.export(on_top, "onnx-shared", out=work / "shared", max_loss=100, max_loss_upper=100)
    newsdesk.train("quick", out=work / "begun", flags={**flags, "training.epochs": 2.0}, observe=_stop_at(20))
    fewer = {"data.train_rows": 400, "data.folds": 3, "training.epochs": 2.0}
    _cross_validate_in_part(work / "folds", {**flags, **fewer})
    newsdesk.export(run, "onnx-int8", max_loss=100, max_loss_upper=100)
    newsdesk.train("quick", out=work / "stacked", flags={**flags, "model.linear": "stack"})
    newsdesk.sweep("quick", out=work / "sweep", flags=flags, vary=["lora.rank=1,4"])
    sets = _rows_of_several(rows)
    (work / "sets.jsonl").write_text("\n".join(map(json.dumps, sets)))
    (work / "few.jsonl").write_text("\n".join(map(json.dumps, sets[:40])))
    windows = {"data.train": str(work / "sets.jsonl"), "model.max_length": 12, "model.long_texts": "windows"}
    several = newsdesk.train(
        "quick", out=work / "sets", flags={**flags, **windows, "training.epochs": 3.0}
    ).path
    newsdesk.evaluate(several, str(work / "few.jsonl"))
    newsdesk.export(several, "onnx-fp32", out=work / "sets-export")
    few = {**flags, "data.train": str(work / "few.csv"), "training.min_steps": 0}
    of_few = {**few, "data.unlabelled": str(work / "rows.csv"), "training.epochs": 9.0}
    newsdesk.train("few", out=work / "fitted", flags={**of_few, "data.folds": 0}, observe=_stop_at(10))
    newsdesk.train("few", out=work / "folded", flags={**few, "data.folds": 3, "model.linear": "stack"})
    start = {"training.start_from": str(run), "data.train": str(work / "other.csv")}
    newsdesk.train(out=work / "grown", flags=start, overrides=["training.growing_rows=64"])
    _label(None, work / "labelling", work, labels=LABELS.split(","), base=base)
    _label(run, work / "labelling-by-run", work)
    shutil.copytree(work / "run" / "adapter", work / "adapter")
    for name in ("export", "shared", "run"):
        shutil.copytree(work / name, work / "served" / name)
    (work / "tokens").mkdir()
    make_token(work / "tokens" / "tokens.json", "desk")
    make_token(work / "tokens" / "tokens.json", "wire", manage=True)
    _watch(work / "export", work / "watching", rows[:20])
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


def _label(
    run: Path | None, folder: Path, work: Path, *, labels: Sequence[str] = (), base: Path | None = None
) -> None:
    """A folder with rows, some of which were labelled, a last answer taken back."""
    from newsdesk.evaluation.labelling import Wanted, opened_labelling

    folder.mkdir()
    lines = (work / "other.csv").read_text().splitlines()
    (folder / "wire.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    wanted = Wanted(rows=20, random=0.3, batch=5, base=None if base is None else str(base))
    with opened_labelling(
        run, str(folder / "wire.csv"), folder / "out.csv", wanted, labels=labels
    ) as labelling:
        for number in range(8):
            pick = labelling.question()
            assert pick is not None
            labelling.answer(pick, None if number == 3 else (LABELS.split(",")[number % 3],))
        labelling.undo()


def _watch(export: Path, folder: Path, rows: list[tuple[str, str]]) -> None:
    """A watched folder, one of whose files was classified, and one was not."""
    from newsdesk.prediction.open_model import open_model
    from newsdesk.prediction.watched_folder import watch_folder

    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for _, text in rows))
    watch_folder(open_model(export), folder / "in", folder / "out", once=True, settle=0.0)
    (folder / "in" / "b.csv").write_text("".join(f"{text}\n" for text in ("text", *(t for _, t in rows))))


def materials(work: Path) -> list[Material]:
    """What `build` left in ``work``, with the verbs that read it."""
    of_both = (
        "predict {it} goal",
        "evaluate {it} --data {rows}",
        "explain {it} goal",
        "calibrate {it} --data {rows} --learned-rows keep",
    )
    of_labels = (
        "labels {it}",
        "labels {it} --rename Sports=Games --retire Science --out out",
        "labels {it} --rename Business=Trade --overwrite",
        "label {it} --data {rows} --out out.csv --rows 4 --batch 2",
        "train --from {it} --data {rows} --out out --dry-run",
        "train --from {it} --data {other} --out out --no-baseline --set training.growing_rows=32",
    )
    of_runs = (
        "predict {it} goal --abstain 0.2 --sets 0.9 --off-topic 0.1",
        "predict {it} goal --engine torch",
        "report {it} --data {rows}",
        "compare {it} {sound} --data {rows}",
        "train --out {it} --resume",
        "export {it} --to merged --out out --data {rows} --learned-rows keep",
        "export {it} --to onnx-shared --out out --data {rows} --learned-rows keep --max-loss-upper 100",
    )
    begin = f"train --base {work / 'base'} --out out"
    quick = "--epochs 1 --folds 0 --no-baseline --set training.min_steps=0"
    fitted = f"{quick} --set training.start=fitted --unlabelled"
    asked = f"--labels {LABELS} --rows 20 --batch 5"
    of_data = (
        "data check {it}",
        f"data check {{it}} --base {work / 'base'} --against {{rows}}",
        "predict {sound} --input {it} --output out.csv",
        "predict {exported} --input {it} --output out.jsonl",
        "predict {exported} --input {it} --format ninjs --output out.json",
        "predict {shared} --input {it} --output out.csv",
        "evaluate {sound} --data {it}",
        "evaluate {sound_sets} --data {it}",
        "calibrate {sound} --data {it} --learned-rows keep",
        "compare {sound} {exported} --data {it}",
        "label {sound} --data {it} --out out.jsonl --rows 4",
        f"label --data {{it}} --out out.csv --random 1 {asked}",
        f"audit --data {{it}} --base {work / 'base'} --out out",
        "train --from {sound} --data {it} --out out --dry-run",
        f"{begin} --data {{it}} --dry-run",
        f"{begin} --data {{rows}} {fitted} {{it}}",
    )
    of_sets = (
        *(command.format(it="{it}", rows="{sets}") for command in of_both),
        "predict {it} goal --abstain 0.2 --off-topic 0.1",
        "predict {it} --input {sets} --output out.csv --indicators",
        "compare {it} {sound_sets} --split test",
        "labels {it} --rename Sports=Games --retire Science --out out",
        "label {it} --data {sets} --out out.jsonl --rows 4",
    )
    of_bases = (
        "train --base {it} --data {rows} --out out --dry-run",
        f"train --base {{it}} --data {{rows}} --out out {quick}",
        f"train --base {{it}} --data {{rows}} --out out {fitted} {{other}}",
        "data check {rows} --base {it}",
        f"label --base {{it}} --data {{other}} --out out.csv {asked}",
        "audit --data {rows} --base {it} --out out",
        f"import-adapter {work / 'adapter'} --base {{it}} --labels {LABELS} --out out",
    )
    of_servers = (
        "serve {it} --port 0 --threads 1",
        "serve {it} --port 0 --threads 1 --abstain 0.3 --sets 0.8",
    )
    watched = "serve {it}/.. --port 0 --threads 1 --watch 0.05"
    of_tokens = (
        "serve {exported} --port 0 --threads 1 --tokens {it}/tokens.json --rate 5",
        "serve --make-token other --tokens {it}/tokens.json",
    )
    watching = "predict {exported} --watch {it}/in --output {it}/out --once --settle 0"
    labelling = (
        f"label --data {{it}}/wire.csv --out {{it}}/out.csv --random 0.3 --base {work / 'base'} {asked}"
    )
    imported = f"import-adapter {{it}} --base {work / 'base'} --labels {LABELS} --out out"
    return [
        Material("run", work / "run", of_both + of_runs + of_labels),
        Material("export", work / "export", (*of_both, "predict {it} --input {rows} --output out.csv")),
        Material("merged", work / "merged", of_both),
        Material("shared", work / "shared", (*of_both, "predict {it} --input {rows} --output out.csv")),
        Material("stacked", work / "stacked", (*of_both, *of_runs, *of_labels, "calibrate {it} --no-stack")),
        Material("sets", work / "sets", (*of_sets, "train --out {it} --resume", "report {it} --data {sets}")),
        Material("sets-export", work / "sets-export", of_sets),
        Material("sweep", work / "sweep", ("sweep --out {it}", "train --out {it} --resume")),
        Material("folds", work / "folds", ("train --out {it} --resume", "predict {it} goal")),
        Material("begun", work / "begun", ("train --out {it} --resume", "predict {it} goal")),
        Material("fitted", work / "fitted", ("train --out {it} --resume", "calibrate {it}", *of_labels)),
        Material("folded", work / "folded", (*of_both, *of_runs, *of_labels, "calibrate {it}")),
        Material("grown", work / "grown", (*of_both, *of_runs, *of_labels, "calibrate {it}")),
        Material("labelling", work / "labelling", (labelling, f"{begin} --data {{it}}/out.csv --dry-run")),
        Material(
            "labelling-by-run",
            work / "labelling-by-run",
            ("label {sound} --data {it}/wire.csv --out {it}/out.csv --random 0.3 --rows 20 --batch 5",),
        ),
        Material("watching", work / "watching", (watching,)),
        Material("base", work / "base", of_bases),
        Material("served", work / "served", of_servers),
        Material("watched", work / "shared", (watched,)),
        Material("watched-run", work / "run", (watched,)),
        Material("tokens", work / "tokens", of_tokens),
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
    others = [
        ("أعمال", "ارتفعت أسهم البنك"),
        ("体育", "球队赢得了比赛"),
        ("Wirtschaft", "Börse schließt im Plus"),
    ]
    foreign = io.StringIO()
    csv.writer(foreign).writerows([("label", "text"), *(others * 20)])
    yield "foreign.csv", foreign.getvalue().encode()
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
