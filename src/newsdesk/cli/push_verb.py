"""The verb push: a run goes to the Hugging Face Hub, when someone says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from newsdesk.cli.shared import JSON_FLAG, Verb, flag, note, say, terminal
from newsdesk.errors import counted

if TYPE_CHECKING:
    from newsdesk.reporting.push_plan import PushPlan


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo_id")
@flag("--private/--public", default=True, show_default=True, help="Who sees the repository.")
@flag("--revision", help="The branch to push to; default: main.", metavar="BRANCH")
@flag("--with-exports", is_flag=True, help="Send the run's exports too.")
@flag("--message", help="What the commit says.", metavar="TEXT")
@flag("--dry-run", is_flag=True, help="Show what would be sent; ask nobody.")
@JSON_FLAG
def push(
    run: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    with_exports: bool,
    message: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload a run to the Hugging Face Hub as REPO_ID, organisation/name; privately unless told otherwise."""
    from newsdesk.reporting.push import push as pushing
    from newsdesk.reporting.push_plan import plan_push

    if dry_run:
        plan = plan_push(run, repo_id, with_exports=with_exports)
        say(plan.to_dict() if as_json else _listed(plan))
        return
    console = terminal()

    def show(plan: PushPlan) -> None:
        for line in _listed(plan):
            note(console, line)

    done = pushing(
        run,
        repo_id,
        private=private,
        revision=revision,
        with_exports=with_exports,
        message=message,
        observe=show,
        progress_bars=console.is_terminal,
    )
    seen = "private" if private else "public"
    ending = f"the run lies at {done.url} ({seen})" if done.changed else f"nothing new for {done.url}"
    say(done.to_dict() if as_json else [ending])


def _listed(plan: PushPlan) -> list[str]:
    """What goes, what stays and why, and what to know before."""
    from newsdesk.display import render_columns

    lines = render_columns([{"bytes": upload.size, "file": upload.path} for upload in plan.uploads])
    lines += ["", f"{counted(len(plan.uploads), 'file')}, {plan.size / 1e6:.1f} MB for {plan.repo_id}"]
    lines += [f"left out: {name} ({why})" for name, why in plan.left_out.items()]
    return [*lines, *(f"note: {text}" for text in plan.notes)]
