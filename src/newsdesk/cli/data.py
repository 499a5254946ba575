"""The verbs about data and things known by name: data and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    Verbs,
    flag,
    note,
    reading_flags,
    say,
    shown_progress,
)
from newsdesk.data.words import Reading, isolated
from newsdesk.errors import counted

if TYPE_CHECKING:
    from newsdesk.data.check import CheckReport, Leakage, LineGroups, Places
    from newsdesk.data.labels import LabelFault
    from newsdesk.data.table import Fault

_LINES_SHOWN, _LABELS_SHOWN = 10, 20


@click.group(cls=Verbs)
def models() -> None:
    """Named base models, and classifiers that come with newsdesk."""


@models.command("list")
@JSON_FLAG
def list_models(as_json: bool) -> None:
    """Classifiers that need no training, and base models to train on, by name.

    Every verb takes such a classifier in place of a run. Any Hub id or folder works as --base, too.
    """
    from newsdesk.cli.tables import render_columns
    from newsdesk.model.catalog import BASE_MODELS

    bases = [
        {
            "name": base.name,
            "parameters": base.parameters,
            "licence": base.licence,
            "cached": base.is_cached,
            "sources": ["hub", *(["pypi"] if base.pypi else [])],
            "description": base.description,
        }
        for base in BASE_MODELS.values()
    ]
    classifiers = list(_ready_made_rows())
    if as_json:
        say({"classifiers": classifiers, "base_models": bases})
        return
    for row in classifiers:
        low, high = (100 * share for share in row.pop("accuracy_interval"))
        row["accuracy"] = f"{100 * row['accuracy']:.2f} % [{low:.2f}, {high:.2f}] of {row.pop('rows'):,} rows"
    say(["classifiers", *render_columns(classifiers), "", "base models", *render_columns(bases)])


def _ready_made_rows() -> Iterator[dict[str, Any]]:
    """What the classifiers that come with newsdesk say of themselves."""
    from newsdesk.evaluation.evaluate import read_metrics
    from newsdesk.runs.folder import open_run
    from newsdesk.runs.ready_made import ready_made

    for name, known in ready_made().items():
        run = open_run(known.path)
        measured = read_metrics(run.metrics)["test"].metrics
        yield {
            "name": name,
            "accuracy": measured.accuracy,
            "accuracy_interval": measured.accuracy_interval,
            "rows": measured.rows,
            "base": run.manifest.base.name,
            "data licence": run.manifest.data.licence if run.manifest.data else None,
            "description": known.description,
        }


@models.command("pull")
@click.argument("name")
@flag("--out", type=PATH, metavar="FOLDER", help="Of a classifier: also copy it here, as a run of your own.")
def pull_model(name: str, out: Path | None) -> None:
    """Fetch a base model, or that of a classifier, into the cache and check its files."""
    from newsdesk import api
    from newsdesk.model.catalog import resolve_base
    from newsdesk.runs.folder import open_run
    from newsdesk.runs.ready_made import ready_made

    known = ready_made().get(name)
    if known is None and out is not None:
        raise click.UsageError(f"--out copies a classifier: {', '.join(ready_made())}.")
    wanted = name
    if known is not None:
        known.verify()
        wanted = open_run(known.path).manifest.base.reference
    with shown_progress() as progress:
        base = resolve_base(wanted, progress=progress, flag=None)
    lines = [f"{base.name} is in {base.path} (from: {base.source})"]
    if known is not None and out is not None:
        note(f"note: {known.notice}")
        lines.append(f"run saved to {api.copy_run(known.path, out).path}")
    say(lines)


@click.group(cls=Verbs)
def data() -> None:
    """Named data sets, and checks of your own files."""


@data.command("list")
@JSON_FLAG
def list_data(as_json: bool) -> None:
    """The data sets known by name; any file or folder works as --data too."""
    from newsdesk.cli.tables import render_columns
    from newsdesk.data.load import DATA_SETS

    rows = [
        {
            "name": known.name,
            "train rows": known.rows[0],
            "test rows": known.rows[1],
            "licence": known.licence,
            "cached": known.is_cached,
            "description": known.description,
        }
        for known in DATA_SETS.values()
    ]
    say(rows if as_json else render_columns(rows))


@data.command("pull")
@click.argument("name")
@flag("--out", type=PATH, metavar="FOLDER", help="Also write it here as train.csv and test.csv.")
def pull_data(name: str, out: Path | None) -> None:
    """Fetch a data set into the cache and check its files."""
    from newsdesk.data.load import pull, write_csv_copy

    with shown_progress() as progress:
        folder = pull(name, progress=progress)
        copies = () if out is None else write_csv_copy(name, out, progress=progress)
    say([f"{name} is in {folder}", *(f"copied to {path}" for path in copies)])


@data.command("check")
@click.argument("path", type=PATH)
@flag("--against", type=PATH, help="A test file whose texts must not be in PATH.")
@reading_flags("text", "label", "task", "template", "normaliser", "dialect")
@flag("--base", help="Count tokens as this base model does.", metavar="NAME|PATH")
@flag("--max-length", type=click.IntRange(min=2), help="Tokens a text would be cut to.")
@JSON_FLAG
def check_data(
    path: Path,
    base: str | None,
    normaliser: str | None,
    task: Literal["auto", "single", "multi"] | None,
    max_length: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Check a file: faults by line, labels, duplicates, leakage. Exit code 1 if problems are found."""
    from newsdesk.config import ModelSection
    from newsdesk.data.check import check
    from newsdesk.model.catalog import resolve_base
    from newsdesk.model.tokenizer import TextTokenizer

    tokenizer = None
    if base is not None:
        with shown_progress() as progress:
            tokenizer = TextTokenizer.from_folder(resolve_base(base, progress=progress).path, None)
        if max_length is not None:
            settings["choices"] = partial(tokenizer.choices, ModelSection(max_length=max_length))
    report = check(
        path,
        normaliser=normaliser or "none",
        task=task or "auto",
        tokenizer=None if tokenizer is None else tokenizer.lengths,
        vocabulary=None if tokenizer is None else tokenizer.fit,
        max_length=max_length,
        **settings,
    )
    say(report.to_dict() if as_json else render_check(report))
    if not report.is_ok:
        click.get_current_context().exit(1)


def render_check(report: CheckReport) -> list[str]:
    """What was found, the worst first; lists are cut and say so."""
    leave_out = "leave these rows out"
    return [
        f"{report.path}: {counted(report.rows, 'row')}, columns {', '.join(report.columns) or 'none'}",
        f"text: {' + '.join(report.text_columns) or 'none'}    label: {report.label_column or 'none'}",
        *([f"read as: {report.read_as}"] if report.read_as else []),
        *([f"news: {report.news}"] if report.news else []),
        *_faults("malformed rows", report.malformed),
        *_faults("encoding faults", report.encoding),
        *_places_found("rows without a label", report.unlabelled, f"label these rows, or {leave_out}"),
        *_places_found("rows without text", report.empty, f"write their texts, or {leave_out}"),
        *(line for fault in report.label_faults for line in _label_fault(fault)),
        *_groups(
            "texts under two labels" if report.several is None else "texts with different labels",
            report.conflicts,
            f"decide on {'one label' if report.several is None else 'their labels'}, or {leave_out}",
        ),
        *_groups("texts more than once", report.duplicates),
        *_leaks(report.leakage),
        *_labels(report),
        *_lengths_and_vocabulary(report),
        "OK" if report.is_ok else "problems found",
    ]


def _section(
    title: str,
    entries: Sequence[str],
    *,
    fixes: Iterable[str | None] = (),
    count: int | None = None,
    shown: int = _LINES_SHOWN,
) -> Iterator[str]:
    """A title, the first entries below it, how many more there are, and the fixes.

    ``count`` is how many were found, where the report itself lists only the first of them.
    """
    yield title
    yield from (f"  {entry}" for entry in entries[:shown])
    found = len(entries) if count is None else count
    if found > shown:
        where = "lists them" if found == len(entries) else f"lists the first {len(entries):,}"
        yield f"  and {found - shown:,} more (--json {where})"
    yield from (f"  fix: {fix}" for fix in dict.fromkeys(fixes) if fix)


def _faults(title: str, faults: Sequence[Fault]) -> Iterator[str]:
    if faults:
        found = [f"{fault.wrong} ({fault.found})" if fault.found else fault.wrong for fault in faults]
        entries = [f"line {fault.line}: {each}" for fault, each in zip(faults, found, strict=True)]
        yield from _section(f"{title}: {len(faults):,}", entries, fixes=[fault.fix for fault in faults])


def _places_found(title: str, places: Places, fix: str) -> Iterator[str]:
    if places.count:
        yield from _section(f"{title}: {places.count:,}, line {_lines(places.lines)}", (), fixes=[fix])


def _label_fault(fault: LabelFault) -> Iterator[str]:
    lines = [f"lines {_lines(fault.lines)}"] if fault.lines else []
    return _section(str(fault), lines, fixes=[fault.fix])


def _groups(title: str, groups: LineGroups, fix: str | None = None) -> Iterator[str]:
    if groups.groups:
        title = f"{title}: {groups.groups:,} ({counted(groups.rows, 'row')})"
        entries = [f"lines {_lines(lines)}" for lines in groups.lines]
        yield from _section(title, entries, fixes=[fix], count=groups.groups)


def _leaks(leakage: Leakage | None) -> Iterator[str]:
    if leakage is None:
        return
    title = (
        f"rows of {leakage.against} that are here too: {leakage.exact:,} exactly, {leakage.near:,} nearly, "
        f"of {leakage.rows:,}"
    )
    entries = [
        f"line {leak.line} here, line {leak.other_line} there, similarity {leak.similarity:.2f}"
        for leak in leakage.leaks
    ]
    fixes = ["leave these rows out of one of the two files"] if entries else []
    yield from _section(title, entries, fixes=fixes, count=leakage.exact + leakage.near)


def _labels(report: CheckReport) -> Iterator[str]:
    if counts := report.label_counts:
        from rich.cells import cell_len

        width = max(map(cell_len, counts))
        entries = [
            f"{isolated(label)}{' ' * (width - cell_len(label))} {count:>9,}  {count / report.rows:>6.1%}"
            for label, count in counts.items()
        ]
        yield from _section(f"labels: {len(counts)}", entries, shown=_LABELS_SHOWN)
    if (several := report.several) is not None:
        yield (
            f"labels a text: mean {several.mean:.2f}, at most {several.most:,}; "
            f"{counted(several.without, 'text')} without any"
        )
        pairs = [
            f"{pair.share:>4.0%} of {counted(pair.rows, 'text')} with {pair.label} have {pair.other}, too"
            for pair in several.together
        ]
        if pairs:
            yield from _section("labels that go together", pairs)


def _lengths_and_vocabulary(report: CheckReport) -> Iterator[str]:
    if (lengths := report.token_lengths) is not None:
        quantiles = ", ".join(f"{share} {tokens}" for share, tokens in lengths.quantiles.items())
        yield f"tokens a text: mean {lengths.mean:.1f}; at most: {quantiles}"
        if lengths.truncated is not None:
            yield f"  cut at {lengths.max_length}: {lengths.truncated:.1%} of the texts"
        for choice in lengths.choices if lengths.truncated else ():
            yield _choice(choice, lengths.choices[0])
    if (fit := report.vocabulary) is not None:
        yield f"unknown tokens: {fit.unknown:.1%}; letters a token: {fit.letters_per_token:.1f}"
        yield from [f"  {fit.warning}"] if fit.warning else []


def _choice(choice: Reading, cut: Reading) -> str:
    """What one way to read long texts reads, and what it costs."""
    costs = "" if choice is cut else f", in {choice.times(cut):.2g} times the time of {cut.choice}"
    return f"  model.long_texts={choice.choice} reads {choice.share:.1%} of all tokens{costs}"


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    return shown + (" ..." if len(lines) > _LINES_SHOWN else "")
