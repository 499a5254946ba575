"""What operators see: counters, gauges and histograms for Prometheus, by its own client library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from newsdesk.prediction.predictions import Predictions
    from newsdesk.serving.batching import Stages
    from newsdesk.serving.models import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The figures of one server; each has a registry of its own, so that several fit into a process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "newsdesk_requests", "Requests answered or refused.", ["protocol", "status"], registry=registry
        )
        self.seconds = Histogram(
            "newsdesk_request_seconds",
            "From a request's first byte to its answer.",
            ["protocol"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.refusals = Counter("newsdesk_refusals", "Requests refused, by why.", ["kind"], registry=registry)
        self.stages = Histogram(
            "newsdesk_stage_seconds",
            "Time of a request by stage: tokenise, queue, compute.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("newsdesk_queue_texts", "Texts that are in the server.", registry=registry)
        self.batch_texts = Histogram(
            "newsdesk_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=registry
        )
        self.batch_tokens = Histogram(
            "newsdesk_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=registry
        )
        self.batch_seconds = Histogram(
            "newsdesk_batch_seconds", "Seconds to compute a batch.", buckets=_SECONDS, registry=registry
        )
        self.texts = Counter("newsdesk_texts", "Texts classified.", ["model"], registry=registry)
        self.labels = Counter("newsdesk_labels", "Labels given.", ["model", "label"], registry=registry)
        self.unanswered = Counter(
            "newsdesk_unanswered", "Texts left unanswered, by why.", ["model", "reason"], registry=registry
        )
        self.drift = Gauge(
            "newsdesk_drift_distance",
            "How far recent answers are from those for the calibration rows, 0 to 1.",
            ["model", "kind"],
            registry=registry,
        )
        self.drift_alarm = Gauge(
            "newsdesk_drift_alarm", "1 while the stream differs.", ["model", "kind"], registry=registry
        )
        self.drift_alarms = Counter(
            "newsdesk_drift_alarms", "Alarms that began.", ["model", "kind"], registry=registry
        )
        self.ready = Gauge("newsdesk_ready", "1 once a warm-up answer came.", registry=registry)

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def staged(self, stages: Stages) -> None:
        """Count where a request's time went."""
        self.stages.labels("tokenise").observe(stages.tokenise)
        self.stages.labels("queue").observe(stages.queue)
        self.stages.labels("compute").observe(stages.compute)

    def answered(self, model: ServedModel, predictions: Predictions) -> None:
        """Count texts and the labels they were given."""
        self.texts.labels(model.name).inc(len(predictions))
        for labels, label, reason in zip(
            predictions.label_sets, predictions.labels, predictions.reasons, strict=True
        ):
            if reason is not None:
                self.unanswered.labels(model.name, reason.partition(" below")[0]).inc()
            for each in labels if labels is not None else filter(None, (label,)):
                self.labels.labels(model.name, each).inc()
        if model.watch is not None:
            for kind in model.watch.see(predictions.probabilities[~predictions.is_unreadable]):
                self.drift_alarms.labels(model.name, kind).inc()

    def exposition(self, models: Iterable[ServedModel], waiting: int) -> bytes:
        """All of it in Prometheus' text format; ``waiting`` texts are in the server."""
        self.waiting.set(waiting)
        for model in models:
            for kind, detector in model.watch.kinds.items() if model.watch is not None else ():
                self.drift.labels(model.name, kind).set(detector.distance)
                self.drift_alarm.labels(model.name, kind).set(detector.is_alarmed)
        return generate_latest(self._registry)
