"""The figures of predict_speed.py, from what its contestants answered."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from side_by_side import markdown_table, spread

from newsdesk.metrics import wilson_interval


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round.

    Attributes:
        tokens: real ones, of all texts of the bulk.
        seconds: of the bulk.
        singles: seconds of each text that was classified alone.
    """

    tokens: int
    seconds: float
    singles: tuple[float, ...] = ()


def texts_per_second(turns: Sequence[Turn], tokens_per_text: float) -> float:
    """Median over the rounds; of texts of average length, whatever texts a turn met."""
    return statistics.median(turn.tokens / turn.seconds for turn in turns) / tokens_per_text


def single_text(turns: Sequence[Turn]) -> dict[str, float]:
    """p50 and p99 in milliseconds over the single texts of all rounds, and how many these were."""
    milliseconds = 1000 * np.concatenate([turn.singles for turn in turns])
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "texts": len(milliseconds)}


def speed_ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, float]:
    """How many times as fast in bulk, round by round."""
    pairs = zip(ours, theirs, strict=True)
    return spread([a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in pairs])


def latency_ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, float]:
    """The share of a peer's p50 that ours takes, round by round."""
    pairs = zip(ours, theirs, strict=True)
    return spread([statistics.median(a.singles) / statistics.median(b.singles) for a, b in pairs])


def quality(labels: Sequence[str], truth: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and the share of the reference's labels that are met, with 95 % intervals (Wilson)."""
    right = sum(map(str.__eq__, labels, truth))
    same = sum(map(str.__eq__, labels, reference))
    return {
        "rows": len(truth),
        "accuracy": right / len(truth),
        "accuracy_interval": wilson_interval(right, len(truth)),
        "agreement": same / len(truth),
        "agreement_interval": wilson_interval(same, len(truth)),
    }


def speed_table(found: Mapping[str, Mapping[str, Any]], ours: str) -> str:
    """One line a contestant, and how ``ours`` stands to it."""
    heads = ["contestant", "batch", "texts/s", "p50 ms", "p99 ms", "peak memory", "on disk"]
    heads += [f"{ours} is", "its p50 is"]
    lines = []
    for name, figures in found.items():
        single = figures["single"]
        lines.append(
            [
                name,
                str(figures["batch"] or "by tokens"),
                f"{figures['texts_per_second']:.1f}",
                f"{single['p50_ms']:.1f}",
                f"{single['p99_ms']:.1f}",
                f"{figures['peak_memory'] / 1e6:.0f} MB",
                f"{figures['bytes_on_disk'] / 1e6:.0f} MB",
                _told(figures.get("bulk_ratio"), "x"),
                _told(figures.get("latency_ratio"), " of it"),
            ]
        )
    return markdown_table(heads, lines)


def cold_table(found: Mapping[str, Mapping[str, Any]], ours: str) -> str:
    """Whole processes for one text."""
    return markdown_table(
        ["one text, whole process", "seconds", "peak memory", f"{ours} is"],
        (
            [
                name,
                f"{figures['seconds']:.2f} ({figures['low']:.2f}-{figures['high']:.2f})",
                f"{figures['peak_memory'] / 1e6:.0f} MB",
                _told(figures.get("ratio"), "x"),
            ]
            for name, figures in found.items()
        ),
    )


def quality_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy and agreement with their intervals."""
    return markdown_table(
        ["contestant", "rows", "accuracy %", "same label as float32 %"],
        (
            [name, f"{figures['rows']:,}", _share(figures, "accuracy"), _share(figures, "agreement")]
            for name, figures in found.items()
        ),
    )


def _share(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures[f"{name}_interval"]
    return f"{100 * figures[name]:.2f} ({100 * low:.2f}-{100 * high:.2f})"


def _told(ratio: Mapping[str, float] | None, unit: str) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f}{unit} ({ratio['low']:.2f}-{ratio['high']:.2f})"
