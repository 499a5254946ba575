"""The process: it opens models, listens, warms up, watches folders, and stops without losing a request."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from newsdesk.errors import UserError
from newsdesk.serving.access import Access
from newsdesk.serving.app import create_app
from newsdesk.serving.batching import Batcher
from newsdesk.serving.endpoints import LOG, Service
from newsdesk.serving.metrics import Metrics
from newsdesk.serving.models import Models, sources_of
from newsdesk.serving.refusals import Refusal
from newsdesk.serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 2048
_LAST_BATCH = 10.0  # seconds at most that the end of a process waits for what is being computed
_KEEP_ALIVE = 75  # seconds that a connection may be idle


class JsonLines(logging.Formatter):
    """A log record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The time, the level, what happened, and its facts."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


def log_to_standard_error() -> None:
    """Write the log as lines of JSON on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.handlers[:] = [handler]
    uvicorn_log.setLevel(logging.WARNING)
    uvicorn_log.propagate = False


class _Connection(HttpToolsProtocol):
    """A connection that is closed where a client takes too long to send a request's head, or to read.

    Requests over connections beyond ``most_connections`` are answered with status 503.
    """

    slow_client, most_connections = 10.0, 1000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_due: asyncio.TimerHandle | None = None
        self._wait_for_head()
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(3000 * self.slow_client)  # of data that the client does not take
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        # uvicorn's own limit counts the tasks of answers that are sent already, too.
        self.limit_concurrency = 0 if len(self.connections) > self.most_connections else None
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_due = self.loop.call_later(self.slow_client, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


class Server(uvicorn.Server):
    """A server that, told to stop, first answers what it accepted and refuses the rest."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stop: at once, where that was said before."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        LOG.info("stopping", extra={"facts": {"signal": sig, "texts": self.service.batcher.waiting}})
        self.service.is_stopping = True
        self.service.metrics.ready.set(0)
        self._stop_at = time.monotonic() + self.service.settings.linger

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: whether to end now."""
        if self.service.failure or (self._stop_at is not None and time.monotonic() >= self._stop_at):
            self.should_exit = True
        return await super().on_tick(counter)


def new_service(places: Sequence[str], settings: Settings) -> Service:
    """Open all models. Raises UserError where one cannot be opened, and for tokens that cannot be read."""
    access, metrics = Access(settings), Metrics()
    models = Models(sources_of(places), promise=settings.promise)
    for name in models.sources:
        models.serve(*models.open(name))
    batcher = Batcher(
        most_waiting=settings.max_waiting,
        tokens_per_batch=settings.batch_tokens,
        threads=settings.computing_threads,
        on_batch=metrics.batch,
    )
    return Service(settings, models, batcher, metrics, access)


def new_app(service: Service, places: Sequence[str]) -> FastAPI:
    """The application, which warms up when it starts and watches its folders if it is told to."""
    app = create_app(service)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        service.batcher.start()
        tasks = [asyncio.create_task(_warm_up(service))]
        if service.settings.watch:
            tasks.append(asyncio.create_task(_watch(service, places)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(service.batcher.stop, _LAST_BATCH)

    app.router.lifespan_context = lifespan
    return app


async def _warm_up(service: Service) -> None:
    try:
        await service.warm_up()
    except UserError as error:
        service.failure = error
        return
    except Exception as error:
        LOG.exception("no model answers")
        service.failure = UserError("no model answers", found=repr(error))
        return
    LOG.info("ready", extra={"facts": {"models": [model.name for model in service.models]}})


async def _watch(service: Service, places: Sequence[str]) -> None:
    """Load what changes in the folders, and remove what is gone."""
    models = service.models
    while True:
        await asyncio.sleep(service.settings.watch)
        load, remove = await asyncio.to_thread(models.changed, places)
        for name in load:
            try:
                model = await models.load(name, service.try_out)
                LOG.info("model loaded", extra={"facts": {"model": name, "version": model.version}})
            except Exception as error:
                models.failed(name, models.sources[name])
                refused = error.message if isinstance(error, Refusal) else repr(error)
                wrong = error.wrong if isinstance(error, UserError) else refused
                LOG.warning("model not loaded", extra={"facts": {"model": name, "error": wrong}})
        for name in remove:
            with suppress(Exception):
                await models.remove(name)
                LOG.info("model removed", extra={"facts": {"model": name}})


def serve(places: Sequence[str], settings: Settings) -> None:
    """Serve models until a signal says to stop.

    Raises UserError where they or the port cannot be had, and where one of them does not answer a text.
    """
    with bound(settings.host, settings.port) as listening:
        server = new_server(places, settings)
        log_to_standard_error()
        address = "http://{}:{}".format(*listening.getsockname()[:2])
        models = [model.name for model in server.service.models]
        LOG.info("listening", extra={"facts": {"address": address, "models": models}})
        server.run([listening])
    if server.service.failure is not None:
        raise server.service.failure


def new_server(places: Sequence[str], settings: Settings) -> Server:
    """A server of models, which are opened. Raises UserError where one cannot be."""
    service = new_service(places, settings)

    class Connection(_Connection):
        slow_client, most_connections = settings.slow_client, settings.max_connections

    config = uvicorn.Config(
        new_app(service, places),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.drain),
    )
    return Server(config, service)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(
            f"newsdesk cannot listen on {host}, port {port}",
            found=error.strerror or str(error),
            fix="choose another with --host and --port; --port 0 takes any that is free",
        ) from None
    return listening
