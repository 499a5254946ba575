"""The form of Hugging Face's inference endpoints for text classification: ``POST /models/{name}``.

https://huggingface.co/docs/inference-providers/tasks/text-classification
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response

from newsdesk.runs.calibration import softmax
from newsdesk.serving.batching import Answered
from newsdesk.serving.endpoints import JSON, Call, json_response
from newsdesk.serving.refusals import Kind, Refusal
from newsdesk.serving.tei import joined, ranked

PROTOCOL = "hugging_face"
_STATUS: dict[Kind, int] = {"invalid": 400, "empty": 400}


class Pair(BaseModel):
    """Two texts that are one input."""

    text: str
    text_pair: str | None = None


class Parameters(BaseModel):
    """How scores are made of logits, and how many classes are named."""

    model_config = ConfigDict(strict=True)

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class InferenceRequest(BaseModel):
    """A text, a pair, or a list of these."""

    inputs: str | Pair | Annotated[list[str | Pair], Field(min_length=1)]
    parameters: Parameters | None = None


class ClassScore(BaseModel):
    """A class and its score."""

    label: str
    score: float


class InferenceResponse(RootModel[list[list[ClassScore]]]):
    """The classes of each text, the highest score first: a list for each, also where there is one."""


class InferenceError(BaseModel):
    """Why there is no answer."""

    error: str


_REQUEST = TypeAdapter(InferenceRequest)


def refused(refusal: Refusal) -> Response:
    """A refusal in this form."""
    return json_response({"error": refusal.message}, _STATUS.get(refusal.kind, refusal.status))


async def infer(call: Call) -> Response:
    """Scores of classes, the highest first: calibrated probabilities, unless a function is named."""
    asked = await call.parsed(_REQUEST)
    model = call.service.models.get(call.request.path_params["name"])
    inputs = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    texts = [
        each if isinstance(each, str) else joined(model, (each.text, each.text_pair or "")) for each in inputs
    ]
    parameters = asked.parameters or Parameters()

    def render(answered: Answered) -> bytes:
        predictions = model.predictions(answered, None, answer_empty=True)
        call.service.metrics.answered(model, predictions)
        scores = predictions.probabilities
        if parameters.function_to_apply is not None:
            scores = model.calibrated_logits(answered.logits)
        if parameters.function_to_apply == "softmax":
            scores = softmax(scores)
        elif parameters.function_to_apply == "sigmoid":
            scores = np.exp(-np.logaddexp(0.0, -scores))
        return to_json([ranked(model, row)[: parameters.top_k] for row in scores.tolist()])

    return Response(await call.run(model, texts, render), media_type=JSON)
