"""The model card of a run: README.md with metadata that the Hub reads, and a text for people.

What newsdesk writes is enclosed in two markers and in ``model-index``; everything else belongs to whoever
edits the file, and is kept. A card without the markers belongs to its owner alone.
"""

from __future__ import annotations

import json
import re
from functools import cache
from shlex import quote
from typing import TYPE_CHECKING, Any

from newsdesk.data.words import isolated, printable
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.evaluation.label_sets import LabelSetEvaluation
from newsdesk.files import damaged, write_text
from newsdesk.label_set_metrics import LabelSetMetrics
from newsdesk.metrics import Metrics
from newsdesk.reports.facts import RunFacts, Source, confusions, duration
from newsdesk.runs.folder import CARD, RunFolder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from jinja2 import Template

BEGIN = (
    "<!-- newsdesk writes from here to the closing mark, and writes it anew after every evaluation; "
    "your own words are kept above and below -->"
)
END = "<!-- newsdesk writes down to here -->"

_WRITTEN_ANEW = "newsdesk evaluate and newsdesk push write a new one"
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&:])")
_MEASURED = ("metrics", "model_name", "eval_results")
"""The metadata that follow the figures; every other entry is kept once it is there."""


def refresh_card(run: RunFolder, *, retrained: bool = False) -> None:
    """Write the card of a finished run, or update the existing one, and seal the run again.

    ``retrained`` says that the card may be of an earlier run in the same folder: of its metadata only what
    newsdesk does not write itself is kept.

    A card that its owner took over, without the markers or with unreadable metadata, is left as it is. A kill
    in between leaves a complete run. Raises UserError when a file of the run is damaged.
    """
    existing = existing_card(run)
    content = card_text(RunFacts.of(run), existing, retrained=retrained)
    if content != existing:
        write_text(run.path / CARD, content)
    run.reseal()


def existing_card(run: RunFolder) -> str | None:
    """The card in the run; None where there is none. Raises UserError when it is not text."""
    path = run.path / CARD
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise damaged(path, str(error), fix=f"save it as UTF-8, or delete it: {_WRITTEN_ANEW}") from None


def card_text(facts: RunFacts, existing: str | None = None, *, retrained: bool = False) -> str:
    """The card: metadata as YAML, then Markdown; what the owner of an ``existing`` one wrote is kept.

    ``retrained`` is as for :func:`refresh_card`. An existing card without the markers, or whose metadata
    cannot be read, is returned as it is.
    """
    body = f"{BEGIN}\n\n{card_body(facts)}\n{END}"
    metadata = card_metadata(facts)
    if existing is None:
        return f"---\n{metadata.to_yaml()}\n---\n\n# {facts.name}\n\n{body}\n"
    before, begin, rest = existing.partition(BEGIN)
    _old, end, after = rest.partition(END)
    card = _parsed(before)
    if not (begin and end) or card is None:
        return existing
    for key, value in vars(metadata).items():
        unset = card.data.get(key) is None
        if key in _MEASURED or (value is not None and (retrained or unset)):
            card.data[key] = value
    card.text += body + after
    return str(card)


def card_body(facts: RunFacts) -> str:
    """The managed part of the card as Markdown: what it is, its use, data, training, figures and limits."""
    return re.sub(r"\n{3,}", "\n\n", _template().render(facts=facts)).strip("\n") + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("newsdesk.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        plain=plain, count="{:,}".format, counted=counted, duration=duration, json=json.dumps, quote=quote
    )
    environment.globals.update(confusions=confusions, source=Source.of)
    return environment.get_template("card.md")


def plain(text: object) -> str:
    """The text so that Markdown shows it as it is, in a paragraph or a table cell, whatever it contains.

    White space becomes single spaces, unprintable characters become U+FFFD. Text with right-to-left letters
    is isolated from its surroundings.
    """
    shown = printable(" ".join(str(text).split()), "\ufffd")
    return isolated(_SPECIAL.sub(r"\\\1", shown)) or "(empty)"


def card_metadata(facts: RunFacts) -> ModelCardData:
    """The metadata of a card as the Hub reads them; what is not known has no entry.

    The licence is the base model's: the adapters are derived from it. Figures are those of metrics.json.
    """
    from huggingface_hub import ModelCardData

    source = facts.train_source
    results = evaluation_results(facts)
    return ModelCardData(
        base_model=facts.base_on_hub,
        base_model_relation="adapter" if facts.base_on_hub else None,
        library_name="peft",
        pipeline_tag="text-classification",
        license=facts.base_licence,
        language=facts.language,
        datasets=[source.hub_id] if source is not None and source.hub_id else None,
        tags=["newsdesk", "lora"],
        metrics=["accuracy", "f1"] if results else None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


_Figure = tuple[str, str, float, dict[str, Any]]


def _figures(of: Metrics) -> list[_Figure]:
    interval = {"interval": list(of.accuracy_interval), "confidence": 0.95}
    return [
        ("accuracy", "Accuracy", of.accuracy, interval),
        ("f1", "Macro F1", of.macro_f1, {"average": "macro"}),
    ]


def _set_figures(of: LabelSetMetrics) -> list[_Figure]:
    intervals = (of.micro_f1_interval, of.macro_f1_interval)
    micro, macro = ({"interval": [*interval], "confidence": 0.95} for interval in intervals)
    return [
        ("f1", "Micro F1", of.micro_f1, {"average": "micro", **micro}),
        ("f1", "Macro F1", of.macro_f1, {"average": "macro", **macro}),
        ("accuracy", "Accuracy of whole label sets", of.subset_accuracy, {}),
    ]


def evaluation_results(facts: RunFacts) -> list[EvalResult]:
    """Accuracy and macro F1 of every evaluated split in the Hub's terms."""
    from huggingface_hub import EvalResult

    results = []
    measured: list[tuple[str, Evaluation | LabelSetEvaluation, list[_Figure]]] = []
    measured += [(split, entry, _figures(entry.metrics)) for split, entry in facts.splits.items()]
    measured += [(split, entry, _set_figures(entry.metrics)) for split, entry in facts.sets.items()]
    for split, entry, its_figures in measured:
        source, figures = Source.of(entry.source), entry.metrics
        for kind, name, value, arguments in its_figures:
            results.append(
                EvalResult(
                    task_type="text-classification",
                    task_name="Text Classification",
                    dataset_type=source.hub_id or source.shown,
                    dataset_name=source.shown,
                    dataset_split=split,
                    dataset_args={"rows": figures.rows, "sha256": entry.fingerprint},
                    metric_type=kind,
                    metric_name=name,
                    metric_value=value,
                    metric_args=arguments,
                )
            )
    return results


def require_readable_metadata(card: str) -> None:
    """Raise UserError unless the Hub's client can read the card's metadata."""
    if _parsed(card) is None:
        raise UserError(
            f"the metadata at the top of {CARD} cannot be read",
            found="no YAML between two lines of ---, or an invalid model-index",
            fix=f"correct them, or delete {CARD}: {_WRITTEN_ANEW}",
        )


def _parsed(content: str) -> ModelCard | None:
    """The card as the Hub's client reads it; None where it cannot."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from yaml import YAMLError  # type: ignore[import-untyped]

    if not REGEX_YAML_BLOCK.search(content):
        return None
    try:
        return ModelCard(content)
    except (YAMLError, ValueError, TypeError):
        return None
