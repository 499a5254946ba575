"""The verbs that hand a run to others: export to a folder, push to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    RUN,
    flag,
    note,
    notice,
    reading_flags,
    say,
    shown_progress,
    terminal,
    verb,
)
from newsdesk.errors import counted

if TYPE_CHECKING:
    from newsdesk.reports.push import PushPlan

KINDS = ("merged", "onnx-fp32", "onnx-int8", "onnx-shared")


@verb()
@RUN
@flag("--to", "kind", type=click.Choice(KINDS), required=True, help="What to make of it.")
@flag("--out", type=PATH, help="The folder to write; default: RUN/export/KIND.", metavar="DIR")
@flag(
    "--data",
    help="Labelled rows to compare on; default: validation rows, topped up with training rows below 1,000.",
    metavar="NAME|PATH",
)
@flag("--max-loss", type=float, metavar="POINTS", help="Accuracy that 8-bit kinds may lose; default: 0.2.")
@flag(
    "--max-loss-upper",
    type=float,
    metavar="POINTS",
    help="Accuracy that it may lose at the upper end of the 95 % interval; default: 0.5.",
)
@flag("--overwrite", is_flag=True, help="Replace the exported model that is there.")
@reading_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def export(
    run: Path,
    kind: Any,
    max_loss: float | None,
    max_loss_upper: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write a run as transformers or ONNX files, once they are found to do what the run does."""
    from newsdesk import api
    from newsdesk.exports.parity import render_progress, render_tried, render_without_linear
    from newsdesk.stored import to_content

    limits = {"max_loss": max_loss, "max_loss_upper": max_loss_upper}
    given: dict[str, Any] = {name: points for name, points in limits.items() if points is not None}
    if given and kind not in ("onnx-int8", "onnx-shared"):
        raise click.UsageError(
            "--max-loss and --max-loss-upper need --to onnx-int8 or onnx-shared; other kinds lose nothing."
        )
    with shown_progress() as progress:
        made = api.export(
            run,
            kind,
            progress=progress,
            observe=lambda quality: note(render_progress(quality)),
            notice=notice,
            **given,
            **settings,
        )
    quality = made.quality
    if as_json:
        say({"path": str(made.path), **to_content(quality)})
    else:
        table = render_tried(quality.tried, quality.rows, quality.limits)
        lost = quality.without_linear or quality.f1_without_linear
        say(
            [*table, *([] if lost is None else [render_without_linear(lost)]), f"export saved to {made.path}"]
        )


@verb()
@RUN
@click.argument("repo_id")
@flag("--private/--public", default=True, show_default=True, help="Who sees the repository.")
@flag("--revision", help="The branch to push to; default: main.", metavar="BRANCH")
@flag("--with-exports", is_flag=True, help="Send the run's exports too.")
@flag("--message", help="The commit message.", metavar="TEXT")
@flag("--dry-run", is_flag=True, help="Show what would be sent, without network.")
@JSON_FLAG
def push(
    run: Path,
    repo_id: str,
    private: bool,
    with_exports: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Upload a run to the Hugging Face Hub as REPO_ID, organisation/name; privately unless told otherwise."""
    from newsdesk.reports.push import plan_push
    from newsdesk.reports.push import push as pushing

    if dry_run:
        plan = plan_push(run, repo_id, with_exports=with_exports)
        say(plan.to_dict() if as_json else _render_plan(plan))
        return
    done = pushing(
        run,
        repo_id,
        private=private,
        with_exports=with_exports,
        observe=lambda plan: note("\n".join(_render_plan(plan))),
        progress_bars=terminal().is_terminal,
        **settings,
    )
    seen = "private" if private else "public"
    ending = f"run pushed to {done.url} ({seen})" if done.changed else f"nothing new for {done.url}"
    say(done.to_dict() if as_json else [ending])


def _render_plan(plan: PushPlan) -> list[str]:
    """What is sent, what stays and why, and what to know before."""
    from newsdesk.cli.tables import render_columns

    infos = [(upload.upload_info.size, upload.path_in_repo) for upload in plan.uploads]
    size = sum(size for size, _path in infos)
    return [
        *render_columns([{"bytes": size, "file": path} for size, path in infos]),
        "",
        f"{counted(len(infos), 'file')}, {size / 1e6:.1f} MB for {plan.repo_id}",
        *(f"left out: {name} ({why})" for name, why in plan.left_out.items()),
        *(f"note: {text}" for text in plan.notes),
    ]
