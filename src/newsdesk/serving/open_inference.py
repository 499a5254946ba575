"""The Open Inference Protocol, version 2, of KServe and Triton, with its binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. A model takes texts
as a tensor of BYTES, or one for each text column, and gives what ``_outputs`` lists.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response

from newsdesk import __version__
from newsdesk.prediction.output_formats import joined_labels
from newsdesk.serving.batching import Answered
from newsdesk.serving.endpoints import JSON, Call, json_response
from newsdesk.serving.models import ServedModel
from newsdesk.serving.own import load_model, remove_model
from newsdesk.serving.refusals import Kind, Refusal

PROTOCOL = "open_inference"
HEADER_LENGTH = "inference-header-content-length"

_STATUS: dict[Kind, int] = {"invalid": 400, "empty": 400}
_OCTETS = "application/octet-stream"
_LENGTH = struct.Struct("<I")


class Tensor(BaseModel):
    """An input: its elements in ``data``, or behind the JSON in as many bytes as ``binary_data_size``."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The inputs, and which outputs are wanted: all of them where none is named."""

    model_config = ConfigDict(json_schema_extra={"title": "inference_request"})

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=64)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=64)] | None = None


class ResponseOutput(BaseModel):
    """An output."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class TensorFacts(BaseModel):
    """What a tensor is called and made of."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class InferenceError(BaseModel):
    """Why there is no answer."""

    error: str


_REQUEST = TypeAdapter(InferRequest)


def refused(refusal: Refusal) -> Response:
    """A refusal in this protocol's form."""
    return json_response({"error": refusal.message}, _STATUS.get(refusal.kind, refusal.status))


async def server(_call: Call) -> Response:
    """What the server is."""
    extensions = ["binary_tensor_data", "model_repository"]
    return json_response({"name": "newsdesk", "version": __version__, "extensions": extensions})


async def live(_call: Call) -> Response:
    """That the process answers."""
    return json_response({"live": True})


async def ready(call: Call) -> Response:
    """That all models answer."""
    call.service.require_ready()
    return json_response({"ready": True})


async def model_ready(call: Call) -> Response:
    """That a model answers."""
    call.service.require_ready()
    return json_response({"name": _asked(call).name, "ready": True})


async def model(call: Call) -> Response:
    """What a model takes and gives."""
    found = _asked(call)
    classes = len(found.classifier.label_names)
    return json_response(
        {
            "name": found.name,
            "versions": [found.version],
            "platform": "newsdesk",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "probability", "datatype": "FP32", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
                {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
            ],
        }
    )


async def index(call: Call) -> Response:
    """All models (Triton's model repository extension)."""
    return json_response(
        [{"name": each.name, "version": each.version, "state": "READY"} for each in call.service.models]
    )


async def load(call: Call) -> Response:
    """Open a model anew; see ``POST /v1/models/{name}``."""
    await load_model(call)
    return json_response({"name": call.request.path_params["name"], "load": True})


async def unload(call: Call) -> Response:
    """Serve a model no longer."""
    await remove_model(call)
    return json_response({"name": call.request.path_params["name"], "unload": True})


def _asked(call: Call) -> ServedModel:
    """The model of a path, and of its version where one is named."""
    found = call.service.models.get(call.request.path_params["name"])
    version = call.request.path_params.get("version")
    if version is not None and version != found.version:
        raise Refusal("unknown_model", f"{found.name} has the version {found.version!r}, not {version!r}")
    return found


async def infer(call: Call) -> Response:
    """Labels, their probabilities, and those of all classes, for a tensor of texts."""
    found = _asked(call)
    asked, binary = await _request_of(call)
    texts = _texts_of(found, asked.inputs, binary)
    wanted = [output.name for output in asked.outputs] if asked.outputs else None
    in_binary = {output.name: output.parameters.get("binary_data") for output in asked.outputs or ()}
    by_default = bool(asked.parameters.get("binary_data_output"))

    def render(answered: Answered) -> tuple[bytes, list[bytes]]:
        outputs = _outputs(call, found, answered)
        if unknown := set(wanted or ()) - outputs.keys():
            raise Refusal("invalid", f"there is no output {min(unknown)!r}; there are {', '.join(outputs)}")
        described: list[dict[str, Any]] = []
        tails: list[bytes] = []
        for name in wanted or outputs:
            is_binary = by_default if in_binary.get(name) is None else bool(in_binary[name])
            described.append(_described(name, outputs[name], tails if is_binary else None))
        content = {"model_name": found.name, "model_version": found.version, "outputs": described}
        return to_json(content | ({} if asked.id is None else {"id": asked.id})), tails

    head, tails = await call.run(found, texts, render)
    if not tails:
        return Response(head, media_type=JSON)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(b"".join([head, *tails]), media_type=_OCTETS, headers=headers)


async def _request_of(call: Call) -> tuple[InferRequest, bytes]:
    """The JSON of a request, whatever its content type, and the bytes behind it."""
    stated = call.request.headers.get(HEADER_LENGTH)
    if stated is None:
        return await call.parsed(_REQUEST), b""
    if not stated.isascii() or not stated.isdigit() or not 0 < int(stated) <= len(call.body):
        raise Refusal(
            "invalid", f"Inference-Header-Content-Length is {stated!r}, and the body {len(call.body)}"
        )
    length = int(stated)
    binary, call.body = call.body[length:], call.body[:length]
    return await call.parsed(_REQUEST), binary


def _texts_of(model: ServedModel, inputs: Sequence[Tensor], binary: bytes) -> list[str]:
    """The texts of one tensor, or the rows of several that are named like the run's text columns."""
    columns: dict[str, list[str]] = {}
    at = 0
    for tensor in inputs:
        if tensor.datatype != "BYTES":
            raise Refusal("invalid", f"the input {tensor.name!r} is {tensor.datatype}, where texts are BYTES")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            columns[tensor.name] = _strings(tensor)
        elif type(size) is not int or not 0 <= size <= len(binary) - at:
            raise Refusal("invalid", f"binary_data_size of {tensor.name!r} is {size!r}: more than was sent")
        else:
            columns[tensor.name] = _elements(tensor.name, binary[at : at + size])
            at += size
        if len(columns[tensor.name]) != prod(tensor.shape):
            found = len(columns[tensor.name])
            raise Refusal("invalid", f"{tensor.name!r} has {found} elements, its shape {tensor.shape} others")
    if at != len(binary):
        raise Refusal("invalid", f"{len(binary) - at} bytes more than the inputs have")
    if len(columns) == 1:
        return next(iter(columns.values()))
    if len({len(column) for column in columns.values()}) > 1:
        raise Refusal("invalid", "the inputs have different numbers of elements")
    rows = zip(*columns.values(), strict=True)
    return [model.text_of(dict(zip(columns, row, strict=True))) for row in rows]


def _strings(tensor: Tensor) -> list[str]:
    """The elements of a tensor in JSON, however they are nested."""
    if tensor.data is None:
        raise Refusal("invalid", f"the input {tensor.name!r} has neither data nor binary_data_size")
    found: list[str] = []
    pending: list[Any] = [tensor.data]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += reversed(each)
        elif isinstance(each, str):
            found.append(each)
        else:
            raise Refusal(
                "invalid", f"the input {tensor.name!r} holds {json.dumps(each)[:40]}, which is no text"
            )
    return found


def _elements(name: str, content: bytes) -> list[str]:
    """The elements of a tensor of BYTES: each is four bytes of its length, then itself."""
    found, at = [], 0
    while at < len(content):
        if at + _LENGTH.size > len(content):
            raise Refusal("invalid", f"the input {name!r} ends within the length of an element")
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if at + length > len(content):
            raise Refusal("invalid", f"the input {name!r} ends within an element of {length} bytes")
        try:
            found.append(content[at : at + length].decode())
        except UnicodeDecodeError:
            raise Refusal("invalid", f"an element of the input {name!r} is not UTF-8") from None
        at += length
    return found


def _outputs(call: Call, model: ServedModel, answered: Answered) -> Mapping[str, Any]:
    """All outputs by name: texts as lists, numbers as arrays. A text without an answer has an empty label."""
    predictions = model.predictions(answered, model.rule(model.promise))
    call.service.metrics.answered(model, predictions)
    labels = [
        (prediction.label or "") if prediction.labels is None else joined_labels(prediction.labels)
        for prediction in predictions
    ]
    return {
        "label": labels,
        "probability": predictions.probabilities.max(axis=1),
        "probabilities": predictions.probabilities,
        "logits": np.asarray(model.calibrated_logits(answered.logits), dtype=np.float32),
    }


def _described(name: str, values: Any, tails: list[bytes] | None) -> dict[str, Any]:
    """An output as JSON; where it is wanted as bytes, these go to ``tails``."""
    is_text = isinstance(values, list)
    content: dict[str, Any] = {
        "name": name,
        "datatype": "BYTES" if is_text else "FP32",
        "shape": [len(values)] if is_text else list(values.shape),
    }
    if tails is None:
        return content | {"data": values if is_text else values.ravel().tolist()}
    if is_text:
        encoded = [value.encode() for value in values]
        tails.append(b"".join(_LENGTH.pack(len(each)) + each for each in encoded))
    else:
        tails.append(values.astype("<f4").tobytes())
    return content | {"parameters": {"binary_data_size": len(tails[-1])}}
