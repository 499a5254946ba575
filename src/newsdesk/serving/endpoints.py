"""What all protocols share: a request checked, read, answered or refused, counted and logged."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from newsdesk.errors import UserError
from newsdesk.model.tokenizer import Encoded
from newsdesk.serving.access import ANYONE, Access, Token
from newsdesk.serving.batching import Answered, Batcher
from newsdesk.serving.metrics import Metrics
from newsdesk.serving.models import WARM_UP, Models, ServedModel, is_answer
from newsdesk.serving.refusals import Refusal
from newsdesk.serving.settings import Settings

T = TypeVar("T")

JSON = "application/json"
LOG = logging.getLogger("newsdesk.serving")

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_LARGE = 1 << 16  # bytes of a body that are parsed in a thread


@dataclass(eq=False)
class Service:
    """What answers requests, in whatever protocol they come.

    Attributes:
        settings, models, batcher, metrics, access: its parts.
        is_ready: whether a warm-up answer came.
        is_stopping: whether it takes no more requests.
        failure: why it cannot begin to answer.
    """

    settings: Settings
    models: Models
    batcher: Batcher
    metrics: Metrics
    access: Access
    is_ready: bool = False
    is_stopping: bool = False
    failure: UserError | None = None

    def require_ready(self) -> None:
        """Raise Refusal while no request can be answered."""
        if self.is_stopping:
            raise Refusal("unready", "the server is stopping", retry_after=self.settings.linger)
        if not self.is_ready:
            raise Refusal("unready", "no model has answered yet", retry_after=1.0)

    async def try_out(self, model: ServedModel) -> None:
        """Let a model answer a text. Raises Refusal where it does not."""
        if not await self.batcher.run(model, [WARM_UP], is_answer, seconds=self.settings.deadline):
            raise Refusal("failed", "its answer to a text is no finite number")

    async def warm_up(self) -> None:
        """Let every model answer, and be ready then. Raises UserError for one that does not."""
        for model in self.models:
            try:
                await self.try_out(model)
            except Refusal as refusal:
                raise UserError(
                    f"{model.name} does not answer, and is not served",
                    found=refusal.message,
                    fix=f"leave {model.classifier.path} out, or put an undamaged copy there; where the "
                    "machine is slow, raise --deadline",
                ) from None
        self.is_ready = True
        self.metrics.ready.set(1)


Form = Callable[[Refusal], Response]
"""How a protocol says that a request is refused."""
Work = Callable[["Call"], Awaitable[Response]]


@dataclass(eq=False)
class Call:
    """A request that is being answered.

    Attributes:
        service: what answers it.
        request, body: the request, and what was sent with it.
        id: its own, or the one that it came with.
        who: whose token it has.
        facts: what else its log line says.
    """

    service: Service
    request: Request
    id: str
    body: bytes = b""
    who: Token = ANYONE
    facts: dict[str, Any] = field(default_factory=dict)

    async def parsed(self, adapter: TypeAdapter[T]) -> T:
        """The body as JSON of a type. Raises Refusal, with the first fault, where it is anything else."""
        try:
            if len(self.body) > _LARGE:
                return await asyncio.to_thread(adapter.validate_json, self.body)
            return adapter.validate_json(self.body)
        except ValidationError as error:
            raise Refusal("invalid", first_fault(error)) from None

    async def run(
        self,
        model: ServedModel,
        texts: Sequence[str],
        render: Callable[[Answered], T],
        *,
        check: Callable[[Encoded], None] = lambda _encoded: None,
        models: int = 1,
    ) -> T:
        """What ``render`` makes of a model's outputs for texts, within the limits of requests.

        ``models`` is how many the request asks. Raises Refusal as `Batcher.run`, and beyond limits.
        """
        service = self.service
        service.access.require_texts_within(texts, models=models)
        service.access.pay(self.who, len(texts))
        self.facts["texts"] = self.facts.get("texts", 0) + len(texts)
        self.facts["model"] = model.name
        if service.settings.log_texts:
            self.facts["text"] = list(texts)

        def rendered(answered: Answered) -> T:
            service.metrics.staged(answered.stages)
            return render(answered)

        return await service.batcher.run(
            model, texts, rendered, seconds=service.settings.deadline, check=check
        )


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a request, in a sentence."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with JSON."""
    return Response(to_json(content), status, headers, JSON)


def new_id() -> str:
    """What tells a request from others; no secret, so that it need not wait for the system's randomness."""
    return f"{random.getrandbits(64):016x}"


def endpoint(
    service: Service,
    protocol: str,
    form: Form,
    work: Work,
    *,
    always: bool = False,
    open_to_all: bool = False,
) -> Callable[[Request], Awaitable[Response]]:
    """What answers the requests of a path: ``work``, or ``form`` where it raises Refusal.

    ``always`` answers while the server is not ready, too, and ``open_to_all`` without a token.
    """

    async def handle(request: Request) -> Response:
        begun = time.perf_counter()
        given = request.headers.get("x-request-id", "")
        call = Call(service, request, given if _REQUEST_ID.fullmatch(given) else new_id())
        try:
            if not open_to_all:
                call.who = service.access.who(request)
            if not always:
                service.require_ready()
            call.body = await service.access.body(request)
            response = await work(call)
        except Refusal as refusal:
            response = _refused(call, form, refusal)
        except Exception:
            LOG.exception("a request failed", extra={"facts": {"id": call.id, "protocol": protocol}})
            response = _refused(call, form, Refusal("failed", "the server failed; its log says why"))
        response.headers["X-Request-Id"] = call.id
        _count(service, protocol, call, response, time.perf_counter() - begun)
        return response

    return handle


def _refused(call: Call, form: Form, refusal: Refusal) -> Response:
    call.facts["refused"] = refusal.kind
    call.service.metrics.refusals.labels(refusal.kind).inc()
    response = form(refusal)
    response.headers.update(refusal.headers())
    return response


def _count(service: Service, protocol: str, call: Call, response: Response, seconds: float) -> None:
    service.metrics.requests.labels(protocol, str(response.status_code)).inc()
    service.metrics.seconds.labels(protocol).observe(seconds)
    if LOG.isEnabledFor(logging.INFO):
        facts = {
            "id": call.id,
            "protocol": protocol,
            "status": response.status_code,
            "seconds": round(seconds, 6),
            **({"token": call.who.name} if call.who.name else {}),
            **call.facts,
        }
        LOG.info("request", extra={"facts": facts})
