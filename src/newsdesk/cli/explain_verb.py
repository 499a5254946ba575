"""The verb explain: the words that carried a decision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from newsdesk.cli.shared import JSON_FLAG, Verb, flag, say, shown_once_fetching
from newsdesk.data.words import isolated

if TYPE_CHECKING:
    from rich.text import Text

    from newsdesk.inference.explanation import Explanation

_FAINTEST = 0.15  # of the strongest weight: what is weaker stays uncoloured


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, metavar="TEXT ...")
@flag("--top", type=click.IntRange(min=1), default=8, show_default=True, help="How many words to list.")
@flag("--target", help="The class to explain; default: the predicted one.", metavar="LABEL")
@JSON_FLAG
def explain(run: Path, texts: tuple[str, ...], top: int, target: str | None, as_json: bool) -> None:
    """Show which words of a text carried the decision.

    RUN is a run or an export of one. A word's weight is what the class's log-odds lose without it.
    """
    from newsdesk import api
    from newsdesk.inference.explanation import explain as explain_text

    with shown_once_fetching() as progress:
        classifier = api.load(run, progress=progress)
    explanations = [explain_text(classifier, text, target=target) for text in texts]
    if as_json:
        say({"explanations": [explanation.to_dict() for explanation in explanations]})
    else:
        say(_rendered(explanations, top))


def _rendered(explanations: Sequence[Explanation], top: int) -> list[str]:
    """What the terminal shows: in colour where standard output is one that wants it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with console.capture() as captured:
        for number, explanation in enumerate(explanations):
            console.print(*([""] if number else []), *_lines(explanation, top), sep="\n")
    return captured.get().removesuffix("\n").split("\n")


def _lines(explanation: Explanation, top: int) -> list[Text | str]:
    """The decision, the text with its words marked, and the weightiest words with their numbers."""
    if explanation.label is None:
        return [f"nothing to explain: {explanation.reason}", isolated(explanation.text)]
    target = isolated(explanation.target)
    decision = f"{isolated(explanation.label)} {explanation.probability:.1%}"
    if explanation.target != explanation.label:
        decision += f"; explained: {target} {explanation.target_probability:.1%}"
    ranked = explanation.top(top)
    listed = [f"{word.weight:+7.2f}  {isolated(word.text)}" for word in ranked]
    odds = f"log-odds {explanation.log_odds:+.2f}, of an empty text {explanation.base_log_odds:+.2f}"
    lost, tokens = explanation.tokens_lost, explanation.tokens
    cut = [f"the last {lost:,} of {tokens:,} tokens ({lost / tokens:.1%}) were not read"] if lost else []
    says = f"{odds} (nats; + speaks for {target})"
    return [decision, _marked(explanation), *listed, says, *cut]


def _marked(explanation: Explanation) -> Text:
    """The text; what speaks for the class green, against it red, the stronger the brighter."""
    from rich.text import Text

    marked = Text(explanation.text)
    strongest = max((abs(word.weight) for word in explanation.words), default=0.0)
    for word in explanation.words:
        share = abs(word.weight) / strongest if strongest else 0.0
        if share >= _FAINTEST:
            colour = "green" if word.weight > 0 else "red"
            marked.stylize(f"bold {colour} reverse" if share > 0.5 else colour, word.start, word.end)
    shown = isolated(explanation.text)
    return marked if shown == explanation.text else Text.assemble(shown[0], marked, shown[-1])
