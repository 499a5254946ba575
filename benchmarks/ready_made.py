"""Let a finished run come with newsdesk as a classifier: ``newsdesk predict NAME "TEXT"`` without training.

    python benchmarks/ready_made.py runs/ag-news ag-news

NAME has an entry in src/newsdesk/ready_made/classifiers.toml, the run an evaluation on the split
``test``, and the rows of both are where they were. What predicts, measures and explains is copied, but
not the linear model beside the encoder; the log keeps 200 steps; places of this machine become the name of
the data set. Nothing is written unless

- base model, data set, their licences and the figures are known, and the training came to its end,
- no file has eight words in a row of a training, validation or test text, or a path of this machine,
- weights and hashes are numbers alone, and all of it adds at most 5 MB to the wheel.

Then the installed run is replaced, and the sha256 of its manifest put into the catalogue.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.data.load import DATA_SETS
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import read_metrics, write_metrics
from newsdesk.evaluation.rows import evaluation_rows, known_rows
from newsdesk.files import open_tensors, sha256_of, write_text
from newsdesk.reports.facts import RunFacts
from newsdesk.reports.model_card import card_text
from newsdesk.runs.calibration import CALIBRATION, read_held_out_rows, write_held_out_rows
from newsdesk.runs.folder import CARD, MANIFEST, RunFolder, open_run
from newsdesk.runs.labels import LABELS
from newsdesk.runs.log import Step, read_log, to_record
from newsdesk.runs.manifest import DataFacts
from newsdesk.runs.ready_made import CATALOGUE, ReadyMade, ready_made

SPLIT = "test"
STEPS_KEPT = 200
MOST_BYTES = 5_000_000
"""Of the run in a wheel, which packs it."""
WORDS = 8
"""In a row, that no file may share with a text."""

_PARTS = (LABELS, "recipe.toml", f"predictions-{SPLIT}.csv", KNOWN_TEXTS)
_FOLDERS = ("adapter/", "tokenizer/", "calibration.", "off_topic.")
_PLACE = re.compile(r"""(?:^|[\s"'(=])((?:/|[A-Za-z]:\\)\w[\w.-]*[/\\][^\s"']*)""", re.MULTILINE)
_NUMBERS = {"F32", "F64", "I64", "U64", "BOOL"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=list(ready_made()))
    asked = parser.parse_args(arguments)
    try:
        known = ready_made()[asked.name]
        print(f"{make(open_run(asked.run), known):,} bytes in a wheel: {known.path}")
    except UserError as error:
        sys.exit(str(error))


def make(run: RunFolder, known: ReadyMade) -> int:
    """Replace what is installed under the name by this run; its size in a wheel, in bytes.

    Raises UserError where something may not be shipped; then nothing is changed.
    """
    require_known(run, known)
    texts = list(corpus(run))
    with tempfile.TemporaryDirectory() as folder:
        copy = RunFolder(Path(folder) / known.name)
        copy_parts(run, copy, known)
        size = require_shippable(copy.path, texts)
        shutil.rmtree(known.path, ignore_errors=True)
        shutil.copytree(copy.path, known.path)
    pin(known)
    return size


def require_known(run: RunFolder, known: ReadyMade) -> None:
    """Raise UserError unless it is known what the run is made of, its licences, and how good it is."""
    manifest, facts = run.manifest, RunFacts.of(run)
    missing = {
        "a training that came to its end": manifest.training is not None and not manifest.is_interrupted,
        "a base model on the Hub, with its sha256": bool(facts.base_on_hub and manifest.base.sha256),
        "the licence of its base": bool(facts.base_licence),
        f"a data set called {known.data_set}, which has a licence": known.data_set in DATA_SETS,
        f"an evaluation on the split {SPLIT}": SPLIT in facts.splits,
        "calibration rows": facts.calibration is not None,
        "an off-topic score": facts.tells_off_topic,
        "answers of the encoder alone (calibrate it --no-stack, and evaluate it again)": not facts.is_stacked,
    }
    if faults := [what for what, there in missing.items() if not there]:
        raise UserError(f"{run.path} cannot be shipped", found=f"it lacks {'; '.join(faults)}")


def corpus(run: RunFolder) -> Iterator[str]:
    """The texts that must not be shipped."""
    rows = known_rows(run, purpose="the check for texts needs", otherwise="put the files back")
    yield from (*rows.train.texts, *rows.validation.texts)
    yield from evaluation_rows(run, read_metrics(run.metrics)[SPLIT].source, SPLIT).texts


def copy_parts(run: RunFolder, copy: RunFolder, known: ReadyMade) -> None:
    """Write what is shipped of the run, its card last but the manifest, with names in place of places."""
    copy.path.mkdir(parents=True)
    for name in run.manifest.files:
        if name in _PARTS or name.startswith(_FOLDERS):
            place = copy.path / name
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(run.path / name, place)
    write_text(copy.log, "".join(thinned(run.log)))
    evaluated, data = read_metrics(run.metrics)[SPLIT], run.manifest.data
    assert data is not None
    for path in (copy.recipe, copy.log, copy.path / CALIBRATION):
        content = path.read_text(encoding="utf-8")
        for place in (data.train.origin, data.validation.origin):
            content = content.replace(place, known.data_set)
        write_text(path, content)
    held_out = read_held_out_rows(run.path)
    assert held_out is not None
    write_held_out_rows(
        copy.path, replace(held_out, linear=None)
    )  # the linear model, of 6 MB, is not shipped
    write_metrics(replace(evaluated, source=known.data_set, model=known.name), copy.metrics)
    copy.seal(replace(run.manifest, data=named(data, known)))
    card = card_text(RunFacts.of(copy))
    card = re.sub(r"^license: .*$", "license: other", card, count=1, flags=re.MULTILINE)
    write_text(copy.path / CARD, card.replace(f"# {known.name}\n", f"# {known.name}\n\n{known.card}", 1))
    copy.reseal()


def thinned(log: Path) -> Iterator[str]:
    """The lines of a log with one step in so many that about STEPS_KEPT are left."""
    entries = list(read_log(log))
    steps = [entry for entry in entries if isinstance(entry.event, Step)]
    kept = {id(entry) for entry in (*steps[:: len(steps) // STEPS_KEPT + 1], steps[-1])}
    for entry in entries:
        if not isinstance(entry.event, Step) or id(entry) in kept:
            yield json.dumps({**to_record(entry.event), "seconds": entry.seconds}) + "\n"


def named(data: DataFacts, known: ReadyMade) -> DataFacts:
    """The facts with the data set's name and licence."""
    train, validation = (
        replace(rows, source=rows.source.replace(rows.origin, known.data_set))
        for rows in (data.train, data.validation)
    )
    licence = DATA_SETS[known.data_set].licence
    return replace(data, train=train, validation=validation, licence=licence)


def require_shippable(folder: Path, texts: Sequence[str]) -> int:
    """The size of the folder in a wheel, in bytes. Raises UserError where a file of it may not be in one."""
    written = "\n".join(
        path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.suffix != ".safetensors" and path.is_file()
    )
    if places := set(_PLACE.findall(written)):
        raise UserError("the run names places of this machine", found=", ".join(sorted(places)))
    runs = set(word_runs(written))
    if quoted := next((run for text in texts for run in word_runs(text) if run in runs), None):
        raise UserError("the run has words of a text in it", found=" ".join(quoted))
    for path in folder.rglob("*.safetensors"):
        with open_tensors(path) as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
            notes = "".join((tensors.metadata() or {}).values())
        if kinds - _NUMBERS or len(notes) > 200:
            raise UserError(f"{path.name} holds more than numbers", found=", ".join(sorted(kinds)))
    size = packed(folder)
    if size > MOST_BYTES:
        raise UserError(f"{size:,} bytes in a wheel", found=f"at most {MOST_BYTES:,} are allowed")
    return size


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(WORDS)), strict=False)


def packed(folder: Path) -> int:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
            for path in filter(Path.is_file, folder.rglob("*")):
                wheel.write(path, path.relative_to(folder))
        return file.seek(0, 2)


def pin(known: ReadyMade) -> None:
    """Put the sha256 of the manifest into the catalogue."""
    catalogue = known.path.parent / CATALOGUE
    before, head, entry = catalogue.read_text(encoding="utf-8").partition(f"[{known.name}]\n")
    pinned = f'manifest_sha256 = "{sha256_of(known.path / MANIFEST)}"'
    entry = re.sub(r'^manifest_sha256 = "\w*"$', pinned, entry, count=1, flags=re.MULTILINE)
    write_text(catalogue, before + head + entry)
    ready_made.cache_clear()


if __name__ == "__main__":
    main()
