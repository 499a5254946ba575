"""Text Embeddings Inference: ``POST /predict``, ``/info`` and ``/health`` as its OpenAPI document has them.

https://github.com/huggingface/text-embeddings-inference, docs/openapi.json
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, WithJsonSchema
from pydantic.functional_validators import BeforeValidator
from pydantic_core import to_json
from starlette.responses import Response

from newsdesk import __version__
from newsdesk.model.tokenizer import Encoded
from newsdesk.serving.batching import Answered
from newsdesk.serving.endpoints import JSON, Call, Service, json_response
from newsdesk.serving.models import ServedModel
from newsdesk.serving.refusals import Kind, Refusal

PROTOCOL = "tei"

_ERRORS: dict[Kind, tuple[int, str]] = {
    "invalid": (422, "Tokenizer"),
    "empty": (400, "Empty"),
    "too_large": (413, "Validation"),
    "rate": (429, "Overloaded"),
    "overloaded": (429, "Overloaded"),
    "late": (429, "Overloaded"),
    "unready": (503, "Unhealthy"),
    "failed": (424, "Backend"),
}
"""Status and type of TEI's errors; those that it does not know have their own status, and are Validation."""


def _sequence(given: Any) -> str | tuple[str, str]:
    """A text, or a pair of texts, from a list of one or two."""
    if isinstance(given, list) and 1 <= len(given) <= 2 and all(isinstance(each, str) for each in given):
        return given[0] if len(given) == 1 else (given[0], given[1])
    raise ValueError("a list of one string, or of a pair of strings")


class _Inputs(list[str | tuple[str, str]]):
    """Texts and pairs of a request; whether they came as a batch, which is answered by a list of lists."""

    is_batch = False


def _inputs(given: Any) -> _Inputs:
    found = _Inputs()
    if isinstance(given, str):
        found.append(given)
    elif isinstance(given, list) and given and isinstance(given[0], list):
        found.is_batch = True
        found += [_sequence(each) for each in given]
    elif isinstance(given, list) and not given:
        found.is_batch = True
    else:
        try:
            found.append(_sequence(given))
        except ValueError:
            raise ValueError(
                "a string, a pair of strings [string, string], or a batch of mixed strings and pairs "
                "[[string], [string, string], ...]"
            ) from None
    return found


_TEXT = {"type": "string"}
_SINGLE = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1}
_PAIR = {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}
_SCHEMA = {
    "oneOf": [_TEXT, _PAIR, {"type": "array", "items": {"oneOf": [_SINGLE, _PAIR]}, "minItems": 1}],
    "description": "A string, a pair of strings, or a batch of mixed strings and pairs.",
}


class PredictRequest(BaseModel):
    """What is to be classified."""

    model_config = ConfigDict(strict=True)

    inputs: Annotated[Any, BeforeValidator(_inputs), WithJsonSchema(_SCHEMA)]
    raw_scores: bool = False
    truncate: bool | None = None


class Prediction(BaseModel):
    """A class and its score."""

    score: float
    label: str


class PredictResponse(RootModel[list[Prediction] | list[list[Prediction]]]):
    """The classes of one input, or of each of a batch, the highest score first."""


class ErrorResponse(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: Annotated[str, Field(pattern="^(Unhealthy|Backend|Overloaded|Validation|Tokenizer|Empty)$")]


_REQUEST = TypeAdapter(PredictRequest)


def refused(refusal: Refusal) -> Response:
    """A refusal in TEI's form."""
    status, error_type = _ERRORS.get(refusal.kind, (refusal.status, "Validation"))
    return json_response({"error": refusal.message, "error_type": error_type}, status)


async def predict(call: Call) -> Response:
    """Scores of all classes, the highest first: calibrated probabilities, or their logits as ``raw_scores``.

    The texts of a pair are joined as the run joins its text columns, which is how it was trained.
    """
    asked = await call.parsed(_REQUEST)
    model = call.service.models.get(call.request.path_params.get("name"))
    inputs: _Inputs = asked.inputs
    texts = [each if isinstance(each, str) else joined(model, each) for each in inputs]
    truncate = call.service.settings.truncates if asked.truncate is None else asked.truncate

    def check(encoded: Encoded) -> None:
        if truncate or encoded.reach is None:
            return
        longest = int(encoded.lengths.max())
        if longest > encoded.reach:
            message = f"`inputs` must have less than {encoded.reach} tokens. Given: {longest}"
            raise Refusal("too_large", f"Input validation error: {message}")

    def render(answered: Answered) -> bytes:
        predictions = model.predictions(answered, None, answer_empty=True)
        call.service.metrics.answered(model, predictions)
        scores = predictions.probabilities
        if asked.raw_scores:
            scores = np.asarray(model.calibrated_logits(answered.logits), dtype=np.float32)
        rows = [ranked(model, row) for row in scores.tolist()]
        return to_json(rows if inputs.is_batch else rows[0])

    content = await call.run(model, texts, render, check=check)
    characters = sum(map(len, texts))
    return Response(content, media_type=JSON, headers={"x-compute-characters": str(characters)})


def ranked(model: ServedModel, scores: list[float]) -> list[dict[str, Any]]:
    """The classes with their scores, the highest first."""
    rows = zip(scores, model.classifier.label_names, strict=True)
    return [{"score": score, "label": label} for score, label in sorted(rows, key=lambda row: -row[0])]


def joined(model: ServedModel, pair: tuple[str, str]) -> str:
    """The text of a pair: the two text columns of a run that has two, else both with a space between."""
    layout = model.classifier.layout
    if len(layout.text_columns) == 2:
        return model.text_of(dict(zip(layout.text_columns, pair, strict=True)))
    return " ".join(filter(None, pair))


async def info(call: Call) -> Response:
    """What is served, and its limits."""
    model = call.service.models.get(call.request.path_params.get("name"))
    return json_response(_info(call.service, model))


def _info(service: Service, model: ServedModel) -> dict[str, Any]:
    names, settings = model.classifier.label_names, service.settings
    return {
        "model_id": model.name,
        "model_sha": model.version,
        "model_dtype": "int8" if model.classifier.engine.endswith("int8") else "float32",
        "model_type": {
            "classifier": {
                "id2label": {str(number): name for number, name in enumerate(names)},
                "label2id": {name: number for number, name in enumerate(names)},
            }
        },
        "max_concurrent_requests": settings.max_waiting,
        "max_input_length": model.classifier.max_length or 0,
        "max_batch_tokens": settings.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": settings.truncates,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


async def health(call: Call) -> Response:
    """Nothing, with status 200, while requests are answered."""
    call.service.require_ready()
    return Response()


async def metrics(call: Call) -> Response:
    """Figures for Prometheus."""
    from newsdesk.serving.metrics import CONTENT_TYPE

    service = call.service
    content = service.metrics.exposition(service.models, service.batcher.waiting)
    return Response(content, media_type=CONTENT_TYPE)
