"""vLLM's ``POST /classify``, in the shapes that its OpenAI-compatible server has.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#classification-api
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response

from newsdesk.model.tokenizer import Encoded
from newsdesk.serving.batching import Answered
from newsdesk.serving.endpoints import JSON, Call, json_response
from newsdesk.serving.refusals import Kind, Refusal

PROTOCOL = "vllm"

_ERRORS: dict[Kind, tuple[int, str]] = {
    "invalid": (400, "BadRequestError"),
    "empty": (400, "BadRequestError"),
    "too_large": (400, "BadRequestError"),
    "unknown_model": (404, "NotFoundError"),
    "no_token": (401, "Unauthorized"),
    "failed": (500, "InternalServerError"),
}


class ClassificationRequest(BaseModel):
    """A text, or several; ``user`` and other fields that change no answer are ignored."""

    model_config = ConfigDict(strict=True)

    texts: Annotated[str | Annotated[list[str], Field(min_length=1)], Field(alias="input")]
    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    use_activation: bool | None = None
    user: str | None = None


class ClassificationData(BaseModel):
    """What is said of one text."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ClassificationResponse(BaseModel):
    """What is said of all texts."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ClassificationData]
    usage: Usage


class ErrorInfo(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: int


class VllmError(BaseModel):
    """Why there is no answer."""

    error: ErrorInfo


_REQUEST = TypeAdapter(ClassificationRequest)


def refused(refusal: Refusal) -> Response:
    """A refusal in vLLM's form."""
    status, kind = _ERRORS.get(refusal.kind, (refusal.status, "ServiceUnavailableError"))
    error = {"message": refusal.message, "type": kind, "param": None, "code": status}
    return json_response({"error": error}, status)


async def classify(call: Call) -> Response:
    """The label and all calibrated probabilities of each text; logits where ``use_activation`` is false."""
    asked = await call.parsed(_REQUEST)
    model = call.service.models.get(asked.model)
    texts = [asked.texts] if isinstance(asked.texts, str) else asked.texts
    reach, cut = model.classifier.max_length, asked.truncate_prompt_tokens
    if cut is not None and reach is not None and 0 <= cut < reach:
        raise Refusal("invalid", f"truncate_prompt_tokens is -1 or {reach}, as the model was trained")

    def check(encoded: Encoded) -> None:
        longest = int(encoded.lengths.max())
        if cut is None and not call.service.settings.truncates and reach is not None and longest > reach:
            message = f"This model's maximum context length is {reach} tokens, and {longest} were given"
            raise Refusal("invalid", message)

    def render(answered: Answered) -> bytes:
        predictions = model.predictions(answered, None, answer_empty=True)
        call.service.metrics.answered(model, predictions)
        scores = predictions.probabilities
        if asked.use_activation is False:
            scores = np.asarray(model.calibrated_logits(answered.logits), dtype=np.float32)
        names = model.classifier.label_names
        tokens = sum(map(len, answered.encoded.ids))
        content: dict[str, Any] = {
            "id": f"classify-{call.id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": [
                {"index": row, "label": names[best], "probs": probs, "num_classes": len(names)}
                for row, (best, probs) in enumerate(
                    zip(scores.argmax(axis=1).tolist(), scores.tolist(), strict=True)
                )
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        return to_json(content)

    return Response(await call.run(model, texts, render, check=check), media_type=JSON)
