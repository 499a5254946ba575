"""newsdesk's own protocol: calibrated answers, promises, off-topic scores, explanations, news items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response

from newsdesk.data.ninjs import is_item, with_subjects
from newsdesk.errors import UserError
from newsdesk.files import parsed_json
from newsdesk.prediction.abstention import LEAST_SHARE, DecisionRule
from newsdesk.prediction.explanation import explain
from newsdesk.prediction.predictions import Predictions, rounded
from newsdesk.serving.batching import Answered
from newsdesk.serving.endpoints import JSON, Call, json_response
from newsdesk.serving.models import ServedModel, is_exported
from newsdesk.serving.refusals import Refusal

PROTOCOL = "own"
MOST_EXPLAINED = 4
"""Texts of a request that may be explained: each is some hundred texts to compute."""

_explaining = asyncio.Semaphore(1)
_JSON = json.JSONDecoder()

Explanations = list[dict[str, Any]]
Share = Annotated[float, Field(ge=LEAST_SHARE, le=1 - LEAST_SHARE)]


class ClassifyRequest(BaseModel):
    """What is to be classified, by which models, and what is to be promised.

    Texts are strings, or objects with the run's text columns, or ninjs items.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str | dict[str, Any]] | str | dict[str, Any]
    models: Annotated[list[str], Field(min_length=1, max_length=256)] | str | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    abstain: Share | None = None
    confidence: Share | None = None
    sets: Share | None = None
    off_topic: Share | None = None
    answer_empty: bool = False
    explain: bool = False


class ClassProbability(BaseModel):
    """A class and its calibrated probability."""

    label: str
    probability: float


class OwnPrediction(BaseModel):
    """What a model says of a text, as ``newsdesk predict --json`` prints it."""

    model_config = ConfigDict(extra="allow")

    label: str | None = None
    probability: float | None = None
    labels: list[str] | None = None
    unsure: list[str] | None = None
    candidates: list[str] | None = None
    reason: str | None = None
    off_topic: float | None = None
    probabilities: dict[str, float] | None = None
    top_k: list[ClassProbability] | None = None


class ModelAnswer(BaseModel):
    """What one model says of all texts."""

    model: str
    version: str
    predictions: list[OwnPrediction]
    truncation: dict[str, float] | None = None
    rule: dict[str, Any] | None = None
    explanations: list[dict[str, Any]] | None = None


class ClassifyResponse(BaseModel):
    """The answers of all models that were asked, in their order."""

    results: list[ModelAnswer]


class OwnError(BaseModel):
    """Why there is no answer."""

    error: str
    kind: str


class ModelFacts(BaseModel):
    """A model that is served; the first four fields are those of OpenAI's lists of models."""

    id: str
    object: str
    created: int
    owned_by: str
    version: str
    labels: list[str]
    task: str
    engine: str
    exported: bool
    max_length: int | None
    text_columns: list[str]
    has_off_topic_score: bool
    temperature: float
    is_default: bool


class ModelList(BaseModel):
    """All models that are served; the first answers requests that name none."""

    object: str
    data: list[ModelFacts]


class Limits(BaseModel):
    """How much a request may ask for, and what is promised where it does not say.

    Texts count once for each model. ``deadline`` is in seconds, ``rate`` in texts a second for each token.
    """

    max_texts: int
    max_characters: int
    max_body: int
    max_explained: int
    deadline: float
    rate: float | None
    promise: dict[str, Any]


_REQUEST = TypeAdapter(ClassifyRequest)


def refused(refusal: Refusal) -> Response:
    """A refusal in newsdesk's own form."""
    return json_response({"error": refusal.message, "kind": refusal.kind}, refusal.status)


async def classify(call: Call) -> Response:
    """Classify texts by one or several models."""
    asked = await call.parsed(_REQUEST)
    service = call.service
    names: Sequence[str | None] = [asked.models] if asked.models is None else listed_names(asked.models)
    given = asked.texts if isinstance(asked.texts, list) else [asked.texts]
    if asked.explain and len(given) > MOST_EXPLAINED:
        raise Refusal("too_large", f"{len(given)} texts to explain, where {MOST_EXPLAINED} are allowed")
    models = [service.models.get(name) for name in dict.fromkeys(names)]
    rules = [await rule_of(model, asked) for model in models]
    texts = [[model.text_of(each) for each in given] for model in models]
    explanations: list[Explanations | None] = [None] * len(models)
    if asked.explain:
        explanations = [*await _explained(call, models, texts)]
    answers = [
        _answer(call, *each, asked, len(models))
        for each in zip(models, rules, texts, explanations, strict=True)
    ]
    parts = await asyncio.gather(*answers)
    return Response(b'{"results":[' + b",".join(parts) + b"]}", media_type=JSON)


def listed_names(names: str | Sequence[str]) -> Sequence[str]:
    """One name or several, as a list."""
    return [names] if isinstance(names, str) else names


async def rule_of(model: ServedModel, asked: ClassifyRequest) -> DecisionRule | None:
    """The rule that a request asks for; the server's where it asks for none. Raises Refusal if impossible."""
    fields = ("abstain", "confidence", "sets", "off_topic")
    wanted = {name: getattr(asked, name) for name in fields if getattr(asked, name) is not None}
    if wanted.keys() == {"confidence"}:
        raise Refusal("invalid", "confidence needs abstain")
    if not wanted:
        return model.rule(model.promise)
    if asked.answer_empty:
        wanted["answer_empty"] = True
    try:
        return await asyncio.to_thread(model.rule, wanted)
    except UserError as error:
        raise Refusal("invalid", f"{error.wrong} (found: {error.found})") from None


async def _answer(
    call: Call,
    model: ServedModel,
    rule: DecisionRule | None,
    texts: Sequence[str],
    explanations: Explanations | None,
    asked: ClassifyRequest,
    models: int,
) -> bytes:
    """The JSON of one model's answer."""

    def render(answered: Answered) -> bytes:
        predictions = model.predictions(answered, rule, answer_empty=asked.answer_empty)
        call.service.metrics.answered(model, predictions)
        content: dict[str, Any] = {
            "model": model.name,
            "version": model.version,
            "predictions": predictions.to_dicts(asked.top_k),
        }
        if predictions.truncation is not None:
            content["truncation"] = predictions.truncation.to_dict()
        if rule is not None:
            content["rule"] = asdict(rule)
        if explanations is not None:
            content["explanations"] = explanations
        return to_json(content)

    return await call.run(model, texts, render, models=models)


async def _explained(
    call: Call, models: Sequence[ServedModel], texts: Sequence[Sequence[str]]
) -> list[Explanations]:
    """What decided for each model on its texts. Raises Refusal while another request is being explained."""
    for each in texts:
        call.service.access.require_texts_within(each, models=len(models))
    if _explaining.locked():
        raise Refusal("overloaded", "another text is being explained", retry_after=2.0)

    def work() -> list[Explanations]:
        return [
            [explain(model.classifier, text).to_dict() for text in of_model]
            for model, of_model in zip(models, texts, strict=True)
        ]

    async with _explaining:
        return await asyncio.to_thread(work)


# --- news items


async def classify_ninjs(call: Call) -> Response:
    """Write ninjs items again with their labels among their subjects; nothing else of them changes.

    The body is an item, or a list of items. An item whose text says nothing, or that is left unanswered,
    stays as it is.
    """
    try:
        source = call.body.decode()
        content = parsed_json(source)
    except ValueError:
        raise Refusal("invalid", "the body is no JSON") from None
    items = content if isinstance(content, list) else [content]
    if wrong := [
        number for number, item in enumerate(items) if not isinstance(item, dict) or not is_item(item)
    ]:
        raise Refusal(
            "invalid", f"item {wrong[0]} is no ninjs item: no uri, or no property of ninjs beside it"
        )
    sources = _spans(source) if isinstance(content, list) else [source.strip()]
    model = call.service.models.get(call.request.query_params.get("model"))
    rule = model.rule(model.promise)
    texts = [model.text_of(item) for item in items]

    def render(answered: Answered) -> bytes:
        predictions = model.predictions(answered, rule)
        call.service.metrics.answered(model, predictions)
        try:
            written = [
                with_subjects(item, text, labels_of(predictions, row))
                for row, (item, text) in enumerate(zip(items, sources, strict=True))
            ]
        except ValueError as error:
            raise Refusal("invalid", str(error)) from None
        joined = ", ".join(written)
        return (f"[{joined}]" if isinstance(content, list) else joined).encode()

    return Response(await call.run(model, texts, render), media_type=JSON)


def labels_of(predictions: Predictions, row: int) -> list[tuple[str, float]]:
    """The labels that a text is given, with their probabilities; none where it is not answered."""
    prediction = predictions[row]
    labels = (prediction.label,) if prediction.labels is None else prediction.labels
    return [(label, rounded(prediction.probabilities[label])) for label in labels if label is not None]


def _spans(source: str) -> list[str]:
    """The JSON of each item of a list."""
    spans: list[str] = []
    at = source.index("[") + 1
    while True:
        while source[at] in " \t\r\n,":
            at += 1
        if source[at] == "]":
            return spans
        _, end = _JSON.raw_decode(source, at)
        spans.append(source[at:end])
        at = end


# --- the models


def facts_of(model: ServedModel, *, is_default: bool) -> dict[str, Any]:
    """What is said of a model."""
    classifier = model.classifier
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.since),
        "owned_by": "newsdesk",
        "version": model.version,
        "labels": list(classifier.label_names),
        "task": classifier.task,
        "engine": classifier.engine,
        "exported": is_exported(model),
        "max_length": classifier.max_length,
        "text_columns": list(classifier.layout.text_columns),
        "has_off_topic_score": classifier.off_topic is not None,
        "temperature": classifier.temperature,
        "is_default": is_default,
    }


async def show_limits(call: Call) -> Response:
    """How much a request may ask for, and what is promised where it does not say."""
    settings = call.service.settings
    found = {name: getattr(settings, name) for name in Limits.model_fields if hasattr(settings, name)}
    return json_response({**found, "max_explained": MOST_EXPLAINED})


async def list_models(call: Call) -> Response:
    """All models that are served."""
    found = [facts_of(model, is_default=not place) for place, model in enumerate(call.service.models)]
    return json_response({"object": "list", "data": found})


async def show_model(call: Call) -> Response:
    """One model."""
    models = call.service.models
    model = models.get(call.request.path_params["name"])
    return json_response(facts_of(model, is_default=model is next(iter(models))))


async def load_model(call: Call) -> Response:
    """Open a model anew from the folder that the server was given for it; serve it once it has answered."""
    service = call.service
    service.access.require_manager(call.request, call.who)
    try:
        model = await service.models.load(call.request.path_params["name"], service.try_out)
    except (UserError, RuntimeError) as error:
        wrong = error.wrong if isinstance(error, UserError) else str(error)
        raise Refusal("invalid", f"{wrong}; what was served before still is") from None
    return json_response(facts_of(model, is_default=model is next(iter(service.models))))


async def remove_model(call: Call) -> Response:
    """Serve a model no longer; requests that it is answering get their answers."""
    call.service.access.require_manager(call.request, call.who)
    await call.service.models.remove(call.request.path_params["name"])
    return Response(status_code=204)
