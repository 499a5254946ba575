"""What a model card says in its text, section by section: every figure from the run's files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from shlex import quote

from newsdesk.data.words import isolated
from newsdesk.errors import counted
from newsdesk.evaluation.baseline import BaselineResult
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.metrics import ClassMetrics, Metrics
from newsdesk.reports.card_facts import CardFacts, Source
from newsdesk.runs.manifest import TrainingFacts

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&:])")


def plain(text: object) -> str:
    """The text so that it reads as it is, in a paragraph or a table's cell, whatever characters it holds.

    Runs of white space become one space, characters that cannot be shown become U+FFFD. Text with
    right-to-left letters is set apart from what is around it.
    """
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(text).split()))
    return isolated(_SPECIAL.sub(r"\\\1", shown)) or "(empty)"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, a line each: header, rule, rows, and an empty line. Cells are Markdown: escape texts first."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def fenced(code: str, language: str) -> list[str]:
    """A block of code, and an empty line."""
    return [f"```{language}", *code.strip("\n").splitlines(), "```", ""]


_CLASSES_NAMED = 12
_WEAKEST_NAMED = 3
_MINUTE, _HOUR = 60, 3600


def card_body(facts: CardFacts) -> str:
    """The managed part of the card as Markdown: what it is, its use, data, training, figures and limits."""
    sections = (
        ("", _summary),
        ("How to use it", _usage),
        ("What it is for, and what not", _intended_use),
        ("Data", _data),
        ("Training", _training),
        ("Figures", _figures),
        ("Limits", _limits),
        ("How to repeat it", _commands),
        ("Versions", _versions),
    )
    lines: list[str] = []
    for title, section in sections:
        lines += [f"## {title}", ""] if title else []
        lines += section(facts)
    return "\n".join(lines).rstrip("\n") + "\n"


def _summary(facts: CardFacts) -> list[str]:
    names = [f"**{plain(name)}**" for name in facts.labels.names[:_CLASSES_NAMED]]
    more = len(facts.labels.names) - len(names)
    named = ", ".join(names) + (f" and {more} more" if more else "")
    base = f"`{facts.base}`" if facts.base_on_hub else f"{plain(facts.base)} (a local model, not on the Hub)"
    size = "" if facts.parameters is None else f" with {facts.parameters:,} parameters of their own"
    return [
        f"A text classifier of {counted(len(facts.labels.names), 'class')}: {named}. "
        f"It consists of LoRA adapters and a head{size}, for the frozen encoder {base}.",
        "",
        *table(
            ["", "licence"],
            [
                ["base model", plain(facts.base_licence or "unknown")],
                ["training texts", plain(facts.data_licence or "unknown")],
            ],
        ),
    ]


def _usage(facts: CardFacts) -> list[str]:
    fetch = [] if facts.repo_id is None else [f"hf download {facts.repo_id} --local-dir {facts.name}"]
    run = facts.name if facts.repo_id else "."
    layout = facts.labels.layout
    made_of = " and ".join(map(plain, layout.text_columns))
    template = "" if layout.template is None else f", put together as {plain(layout.template)}"
    return [
        "With newsdesk, which makes the texts as in training and needs no more than this folder:"
        if facts.repo_id is None
        else "With newsdesk, which makes the texts as in training:",
        "",
        *fenced("\n".join([*fetch, f'newsdesk predict {run} "TEXT"']), "bash"),
        "With transformers and peft alone:",
        "",
        *fenced(_peft_code(facts), "python"),
        f"In training a text was made of the columns {made_of}{template}; normaliser: "
        f"{plain(layout.normaliser)}; cut to {facts.labels.max_length} tokens. Who feeds the model without "
        "newsdesk makes them alike.",
        *_uncalibrated(facts),
        "",
        "A model for transformers' `pipeline`, and ONNX files that need no PyTorch, are made by "
        "`newsdesk export RUN --to merged` and `--to onnx-int8`.",
        "",
    ]


def _peft_code(facts: CardFacts) -> str:
    """Python that predicts with peft; run inside the folder where the model is not on the Hub."""
    here = facts.repo_id is None
    place = json.dumps(facts.repo_id)
    base = json.dumps(facts.base_on_hub or (facts.manifest.base.name if here else facts.base))
    labels = '"labels.json"' if here else f'hf_hub_download({place}, "labels.json")'
    adapter = '"adapter"' if here else place
    tokenizer = '"tokenizer"' if here else f'{place}, subfolder="tokenizer"'
    return "\n".join(
        [
            "import json",
            "",
            *([] if here else ["from huggingface_hub import hf_hub_download"]),
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'labels = json.load(open({labels}, encoding="utf-8"))["labels"]',
            "base = AutoModelForSequenceClassification.from_pretrained(",
            f"    {base}, num_labels=len(labels)",
            ")",
            f"model = PeftModel.from_pretrained(base, {adapter}).eval()",
            f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})",
            "texts = tokenizer(",
            f'    ["TEXT"], truncation=True, max_length={facts.labels.max_length}, padding=True, '
            'return_tensors="pt"',
            ")",
            "print([labels[row] for row in model(**texts).logits.argmax(dim=-1).tolist()])",
        ]
    )


def _uncalibrated(facts: CardFacts) -> list[str]:
    if facts.calibration is None:
        return []
    return [
        "",
        f"newsdesk divides the logits by the temperature {facts.calibration.temperature:.4g} before it "
        "computes probabilities. The adapter does not contain it, so peft gives other ones; exports do.",
    ]


def _intended_use(facts: CardFacts) -> list[str]:
    return [
        "For: sorting texts like those it was trained on into these classes, one class a text.",
        "",
        "Not for: telling whether a text is true, judging people, other languages or kinds of text than the "
        "training data's, or decisions that nobody looks over. A text that belongs to none of the classes "
        "is given one of them all the same"
        + (
            ", unless newsdesk is asked to leave it unanswered (`newsdesk predict --help`)."
            if facts.tells_off_topic or facts.calibration
            else "."
        ),
        "",
    ]


def _data(facts: CardFacts) -> list[str]:
    rows = [
        [plain(rows.part), plain(rows.source.shown), f"{rows.count:,}", f"`{rows.sha256}`"]
        for rows in facts.rows
    ]
    unknown = "What it was trained on is not known: the adapter was imported."
    return [
        *([] if facts.train_source else [unknown, ""]),
        *(table(["part", "source", "rows", "sha256 of the rows"], rows) if rows else []),
        f"Licence of the training texts: {plain(facts.data_licence or 'unknown')}.",
        "",
    ]


def _training(facts: CardFacts) -> list[str]:
    recipe, outcome = facts.recipe, facts.manifest.training
    lora = recipe.lora
    rows = [
        ["adapters", f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}"],
        ["on", plain(", ".join(lora.targets))],
    ]
    variants = [name for name, on in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if on]
    if lora.init != "default":
        variants.append(f"initialised as {lora.init}")
    if variants:
        rows.append(["variant", ", ".join(variants)])
    if facts.parameters is not None:
        rows.append(["parameters stored", f"{facts.parameters:,}"])
    if outcome is None:
        where = "It was trained elsewhere with transformers and peft, and imported: no more is known."
        return [where, "", *table(["", ""], rows)]
    return table(["", ""], [*rows, *_optimisation(facts, outcome)])


def _optimisation(facts: CardFacts, outcome: TrainingFacts) -> list[list[str]]:
    training = facts.recipe.training
    batch = " x ".join(
        f"{number} {of}"
        for number, of in (
            (training.batch_size, "rows"),
            (training.accumulation, "batches"),
            (outcome.processes, "processes"),
        )
        if number > 1 or of == "rows"
    )
    rows = [
        ["epochs, steps", f"{outcome.epochs:g}, {outcome.steps:,}"],
        ["kept", f"the state of step {outcome.best_step:,}{_chosen(outcome, training.metric)}"],
        ["batch", batch],
        [
            "learning rate",
            f"{training.learning_rate:g}, {training.schedule}, warm-up {training.warmup:g}, AdamW, "
            f"weight decay {training.weight_decay:g}",
        ],
        ["seed", str(training.seed if facts.manifest.seed is None else facts.manifest.seed)],
    ]
    if (started := facts.started) and facts.finished:
        rows.append(["time", f"{_duration(facts.finished.seconds)} on {started.device}, {started.precision}"])
    if facts.manifest.is_interrupted:
        rows.append(["ended", "interrupted before its last step"])
    return rows


def _chosen(outcome: TrainingFacts, metric: str) -> str:
    """How the kept state was chosen; earlier versions chose by all validation rows and say no number."""
    if outcome.choosing_rows:
        return f", the best by {metric} on {counted(outcome.choosing_rows, 'validation row')}"
    return ", the last" if outcome.best_step == outcome.steps else f", the best by {metric}"


def _figures(facts: CardFacts) -> list[str]:
    if not facts.splits:
        return ["Not measured yet: `newsdesk evaluate RUN --data NAME|PATH` puts the figures here.", ""]
    rows = []
    for split, entry in facts.splits.items():
        figures = entry.metrics
        rows.append(
            [
                plain(split),
                f"{figures.rows:,}",
                _accuracy(figures),
                f"{figures.macro_f1:.4f} over {figures.over_classes}",
                _calibration_error(entry),
                f"{figures.negative_log_likelihood:.4f}",
            ]
        )
        if baseline := entry.baseline:
            name = f"{plain(split)}: {plain(baseline.description)}"
            rows.append([name, f"{figures.rows:,}", _accuracy(baseline), "", "", ""])
    header = ["split", "rows", "accuracy (95 % interval)", "macro F1", "calibration error", "nats a row"]
    lines = table(header, rows)
    for split, entry in facts.splits.items():
        lines += [line for note in entry.notes() for line in (f"{plain(split)}: {plain(note)}.", "")]
    lines += _confidence(facts)
    for split, entry in facts.splits.items():
        lines += [f"### By class: {plain(split)}", "", *_by_class(entry.metrics.per_class)]
    return lines


def _calibration_error(entry: Evaluation) -> str:
    """That of the probabilities as they are told, and what it was before the temperature, if there is one."""
    error = entry.metrics.expected_calibration_error
    before = entry.calibration.expected_calibration_error.before if entry.calibration else error
    return f"{error:.4f}" + (f" ({before:.4f} without the temperature)" if before != error else "")


def _confidence(facts: CardFacts) -> list[str]:
    """What the temperature did for the rows it was fitted on, and what leaving rows unanswered would gain."""
    lines: list[str] = []
    if (fitted := facts.calibration) is not None:
        error, nats = fitted.expected_calibration_error, fitted.negative_log_likelihood
        lines += [
            f"Temperature {fitted.temperature:.4g}, fitted on {counted(fitted.rows, 'row')}, on which "
            f"it changed the calibration error from {error.before:.4f} to {error.after:.4f} and the nats a "
            "row from "
            f"{nats.before:.4f} to {nats.after:.4f}.",
            "",
        ]
    rows = [
        [plain(split), f"{100 * point.error_rate:g} %", f"{100 * point.coverage:.2f} %"]
        for split, entry in facts.splits.items()
        for point in (entry.risk_coverage.coverage_at if entry.risk_coverage else ())
    ]
    return lines + (table(["split", "wrong among the answered", "answered"], rows) if rows else [])


def _by_class(per_class: Sequence[ClassMetrics]) -> list[str]:
    return table(
        ["class", "precision", "recall", "F1", "rows"],
        [
            [
                plain(entry.label),
                *(f"{share:.4f}" for share in (entry.precision, entry.recall, entry.f1)),
                f"{entry.support:,}",
            ]
            for entry in per_class
        ],
    )


def _limits(facts: CardFacts) -> list[str]:
    limits = [_weakest(split, entry.metrics) for split, entry in facts.splits.items()]
    if not facts.splits:
        limits.append("It was not measured on rows that it did not learn from.")
    limits += [
        "The figures hold for texts like the rows they were measured on: same language, same desk, same "
        "years. What the news speaks of changes; measure anew on rows of your own.",
        f"It reads the first {facts.labels.max_length} tokens of a text and nothing after them.",
        "Wrong labels in the training rows were learned as if they were right.",
    ]
    limits += [f"Of its training: {plain(remark)}." for remark in facts.remarks]
    if not facts.base_on_hub:
        limits.append("Its base model is a local one: without it, nobody can use these adapters.")
    return [*(f"- {limit}" for limit in limits), ""]


def _weakest(split: str, figures: Metrics) -> str:
    """Where it fails most often on a split: the classes of the lowest F1, the pair confused most."""
    present = [entry for entry in figures.per_class if entry.support]
    ranked = sorted(present, key=lambda entry: entry.f1)[:_WEAKEST_NAMED]
    named = ", ".join(f"{plain(entry.label)} ({entry.f1:.4f})" for entry in ranked)
    names = figures.label_names
    pairs = [
        (count, names[true], names[predicted])
        for true, row in enumerate(figures.confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    sentence = f"Weakest classes by F1 on {plain(split)}: {named}."
    if not pairs:
        return sentence
    count, true, predicted = max(pairs, key=lambda pair: pair[0])
    return (
        f"{sentence} Most often confused: {plain(true)} taken for {plain(predicted)}, {count:,} "
        f"of {counted(figures.rows, 'row')}."
    )


def _commands(facts: CardFacts) -> list[str]:
    lines = []
    if facts.manifest.training is not None:
        lines.append("newsdesk train --recipe recipe.toml --out RUN")
    lines += [
        f"newsdesk evaluate RUN --data {quote(Source.of(entry.source).shown)} --split {quote(split)}"
        for split, entry in facts.splits.items()
    ]
    if not lines:
        return ["An imported adapter cannot be trained again from what is known of it.", ""]
    return [
        *fenced("\n".join(lines), "bash"),
        "`recipe.toml` holds every value; the sha256 above prove that the rows are the same.",
        "",
    ]


def _versions(facts: CardFacts) -> list[str]:
    versions = {"newsdesk": facts.manifest.newsdesk, **facts.manifest.versions}
    weights = facts.manifest.base.sha256
    named = ", ".join(f"{name} {plain(version)}" for name, version in versions.items())
    return [f"{named}. sha256 of the base model's weights: `{weights or 'unknown'}`.", ""]


def _accuracy(figures: Metrics | BaselineResult) -> str:
    low, high = (100 * bound for bound in figures.accuracy_interval)
    return f"{100 * figures.accuracy:.2f} % ({low:.2f} to {high:.2f} %)"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{int(seconds) // _HOUR} h {int(seconds) % _HOUR // _MINUTE} min"
