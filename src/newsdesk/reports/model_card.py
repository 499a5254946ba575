"""The model card of a run: README.md with metadata that the Hub reads, and a text for people.

What newsdesk writes stands between two markers and in ``model-index``; all else belongs to whoever edits
the file, and stays. A card without the markers is theirs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from newsdesk.errors import UserError
from newsdesk.files import damaged, write_text
from newsdesk.reports.card_body import card_body
from newsdesk.reports.card_facts import CardFacts, Source
from newsdesk.runs.folder import CARD, RunFolder

if TYPE_CHECKING:
    from huggingface_hub import CardData, EvalResult, ModelCard

BEGIN = (
    "<!-- newsdesk writes from here to the closing mark, and writes it anew after every evaluation; "
    "your own words are kept above and below -->"
)
END = "<!-- newsdesk writes down to here -->"

_WRITTEN_ANEW = "newsdesk evaluate and newsdesk push write a new one"

_MEASURED = ("metrics", "model-index")
"""The metadata that follow the figures; every other entry is kept once it is there."""


def refresh_card(run: RunFolder, *, retrained: bool = False) -> None:
    """Write the card of a finished run, or bring the one there up to date, and seal the run anew.

    ``retrained`` says that the card may be of a run that was at the same place before: of its metadata only
    what newsdesk does not write itself is kept.

    A card that its owner took over, without the markers or with metadata that cannot be read, is left as it
    is. A kill in between leaves a complete run. Raises UserError when a file of the run is damaged.
    """
    existing = existing_card(run)
    content = card_text(CardFacts.of(run), existing, retrained=retrained)
    if content != existing:
        write_text(run.path / CARD, content)
        run.reseal()


def existing_card(run: RunFolder) -> str | None:
    """The card that lies in the run; None where there is none. Raises UserError when it is no text."""
    path = run.path / CARD
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise damaged(path, str(error), fix=f"save it as UTF-8, or delete it: {_WRITTEN_ANEW}") from None


def card_text(facts: CardFacts, existing: str | None = None, *, retrained: bool = False) -> str:
    """The card: metadata as YAML, then Markdown; of an ``existing`` one what its owner wrote is kept.

    ``retrained`` is as for :func:`refresh_card`.

    An existing card without the markers, or with metadata that are no YAML, is given back as it is.
    """
    body = f"{BEGIN}\n\n{card_body(facts)}\n{END}"
    metadata = card_metadata(facts)
    if existing is None:
        return f"---\n{_yaml(metadata)}\n---\n\n# {facts.name}\n\n{body}\n"
    before, begin, rest = existing.partition(BEGIN)
    _old, end, after = rest.partition(END)
    card = _parsed(before)
    if not (begin and end) or card is None:
        return existing
    anew = (*_MEASURED, *(metadata if retrained else ()))
    kept = {key: value for key, value in _entries(card.data).items() if key not in anew}
    measured = {key: metadata[key] for key in _MEASURED if key in metadata}
    return f"---\n{_yaml({**metadata, **kept, **measured})}\n---\n{card.text}{body}{after}"


def card_metadata(facts: CardFacts) -> dict[str, Any]:
    """The metadata of a card as the Hub reads them; what is not known has no entry.

    The licence is the base model's: the adapters are a part of it. Figures are those of metrics.json.
    """
    from huggingface_hub import ModelCardData

    source = facts.train_source
    results = evaluation_results(facts)
    data = ModelCardData(
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
    return _entries(data)


def evaluation_results(facts: CardFacts) -> list[EvalResult]:
    """Accuracy and macro F1 of every evaluated split in the Hub's terms."""
    from huggingface_hub import EvalResult

    results = []
    for split, entry in facts.splits.items():
        source, figures = Source.of(entry.source), entry.metrics
        described: dict[str, Any] = {
            "task_type": "text-classification",
            "task_name": "Text Classification",
            "dataset_type": source.hub_id or source.shown,
            "dataset_name": source.shown,
            "dataset_split": split,
            "dataset_args": {"rows": figures.rows, "sha256": entry.fingerprint},
        }
        low, high = figures.accuracy_interval
        for kind, name, value, arguments in (
            ("accuracy", "Accuracy", figures.accuracy, {"interval": [low, high], "confidence": 0.95}),
            ("f1", "Macro F1", figures.macro_f1, {"average": "macro"}),
        ):
            results.append(
                EvalResult(
                    metric_type=kind,
                    metric_name=name,
                    metric_value=value,
                    metric_args=arguments,
                    **described,
                )
            )
    return results


def require_readable_metadata(card: str) -> None:
    """Raise UserError unless the Hub's client reads the card's metadata."""
    if _parsed(card) is None:
        raise UserError(
            f"the metadata at the top of {CARD} cannot be read",
            found="no YAML between two lines of ---, or a model-index that is none",
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


def _entries(data: CardData) -> dict[str, Any]:
    entries: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return entries


def _yaml(metadata: Mapping[str, Any]) -> str:
    from huggingface_hub import CardData

    return CardData(**metadata).to_yaml()
