"""The application: every path of every protocol, and the OpenAPI document of them all."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from newsdesk import __version__
from newsdesk.serving import hugging_face, open_inference, own, tei, vllm
from newsdesk.serving.endpoints import Call, Form, Service, Work, endpoint, json_response

_SCHEMAS = "#/components/schemas/{model}"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no string is ever read as HTML
)
PAGE_FILES = {
    "/": (("newsdesk.serving", "page/index.html"),),
    "/page/page.css": (("newsdesk.reports", "templates/report.css"), ("newsdesk.serving", "page/page.css")),
    **{
        f"/page/{name}": (("newsdesk.serving", f"page/{name}"),)
        for name in ("page.js", "csv.js", "download.js", "results.js", "server.js", "icon.svg")
    },
}
"""What the page for people is made of: files by the package that has them, joined, for each path."""
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Routes:
    """Adds the paths of a protocol to the application, and their bodies to its document."""

    def __init__(self, app: FastAPI, service: Service, protocol: str, form: Form, error: Any) -> None:
        self._app, self._service = app, service
        self._protocol, self._form, self._error = protocol, form, error

    def add(
        self,
        method: str,
        path: str,
        work: Work,
        *,
        body: type[BaseModel] | None = None,
        answer: Any = None,
        statuses: Mapping[int, str] | None = None,
        always: bool = False,
        open_to_all: bool = False,
        query: Mapping[str, str] | None = None,
        success: int = 200,
    ) -> None:
        """Let ``work`` answer a path; ``body`` and ``answer`` are what the document says of it.

        ``statuses`` are those of its refusals, beside what every path has, each with what it means.
        """
        usual = {400: "No text", 401: "No known token", 403: "Not allowed", 408: "Sent too slowly"}
        usual |= {413: "Too large", 422: "Not understood", 429: "Too much", 503: "Not ready", 504: "Too late"}
        wrong = (statuses or {}) if always else usual | dict(statuses or {})
        responses: dict[int | str, dict[str, Any]] = {
            status: {"description": what, "model": self._error} for status, what in wrong.items()
        }
        if answer is not None:
            responses[success] = {"model": answer, "description": "The answer"}
        extra: dict[str, Any] = {}
        if body is not None:
            _schemas_of(self._app).update(_definitions(body))
            reference = {"$ref": _SCHEMAS.format(model=body.__name__)}
            extra["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": reference}},
            }
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ] + [
            {"name": name, "in": "query", "schema": {"type": "string"}, "description": text}
            for name, text in (query or {}).items()
        ]
        self._app.add_api_route(
            path,
            endpoint(self._service, self._protocol, self._form, work, always=always, open_to_all=open_to_all),
            methods=[method],
            summary=(work.__doc__ or "").partition("\n")[0],
            description=work.__doc__ or "",
            operation_id=f"{self._protocol}{path}".replace("/", "_").replace("{", "").replace("}", "")
            + f"_{method.lower()}",
            tags=[self._protocol],
            responses=responses,
            status_code=success,
            response_class=Response,
            openapi_extra=extra,
        )


def _definitions(body: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of a body and of what it refers to, by name."""
    schema = TypeAdapter(body).json_schema(ref_template=_SCHEMAS)
    inner: dict[str, Any] = schema.pop("$defs", {})
    return {**inner, body.__name__: schema}


def _schemas_of(app: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = app.state.schemas
    return found


def create_app(service: Service) -> FastAPI:
    """The application that answers by ``service``."""
    app = FastAPI(
        title="newsdesk",
        version=__version__,
        description="Text classifiers of newsdesk, in several protocols.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.schemas = {}
    _add_page(app, service)
    _add_own(app, service)
    _add_tei(app, service)
    _add_hugging_face_and_vllm(app, service)
    _add_open_inference(app, service)
    app.add_exception_handler(HTTPException, _unknown_path)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    app.add_middleware(_SecurityHeaders)
    return app


def _add_page(app: FastAPI, service: Service) -> None:
    """The page for people: open to all and at once, since it holds nothing; what it asks is checked."""
    for path, parts in PAGE_FILES.items():
        texts = [(files(package) / name).read_text(encoding="utf-8") for package, name in parts]
        media_type = MEDIA_TYPES[parts[-1][1].rpartition(".")[2]]

        async def show(_call: Call, text: str = "".join(texts), media_type: str = media_type) -> Response:
            return Response(text, 200, {"Content-Security-Policy": PAGE_POLICY}, media_type)

        shown = endpoint(service, "page", own.refused, show, always=True, open_to_all=True)
        app.add_route(path, shown, methods=["GET"], include_in_schema=False)


def _add_own(app: FastAPI, service: Service) -> None:
    routes = Routes(app, service, own.PROTOCOL, own.refused, own.OwnError)
    unknown = {404: "No such model"}
    routes.add(
        "POST",
        "/v1/classify",
        own.classify,
        body=own.ClassifyRequest,
        answer=own.ClassifyResponse,
        statuses=unknown,
    )
    routes.add(
        "POST",
        "/v1/ninjs",
        own.classify_ninjs,
        statuses=unknown,
        query={"model": "The model's name; without it, the first one."},
    )
    routes.add("GET", "/v1/limits", own.show_limits, answer=own.Limits)
    routes.add("GET", "/v1/models", own.list_models, answer=own.ModelList)
    routes.add("GET", "/v1/models/{name}", own.show_model, answer=own.ModelFacts, statuses=unknown)
    routes.add("POST", "/v1/models/{name}", own.load_model, answer=own.ModelFacts, statuses=unknown)
    routes.add("DELETE", "/v1/models/{name}", own.remove_model, statuses=unknown, success=204)


def _add_tei(app: FastAPI, service: Service) -> None:
    routes = Routes(app, service, tei.PROTOCOL, tei.refused, tei.ErrorResponse)
    for prefix in ("", "/tei/{name}"):
        routes.add(
            "POST",
            f"{prefix}/predict",
            tei.predict,
            body=tei.PredictRequest,
            answer=tei.PredictResponse,
            statuses={424: "Inference failed", 404: "No such model"},
        )
        routes.add("GET", f"{prefix}/info", tei.info, statuses={404: "No such model"})
        routes.add(
            "GET", f"{prefix}/health", tei.health, statuses={503: "Unhealthy"}, always=True, open_to_all=True
        )
    routes.add("GET", "/metrics", tei.metrics, statuses={401: "No known token"}, always=True)


def _add_hugging_face_and_vllm(app: FastAPI, service: Service) -> None:
    Routes(app, service, hugging_face.PROTOCOL, hugging_face.refused, hugging_face.InferenceError).add(
        "POST",
        "/models/{name}",
        hugging_face.infer,
        body=hugging_face.InferenceRequest,
        answer=hugging_face.InferenceResponse,
        statuses={404: "No such model"},
    )
    Routes(app, service, vllm.PROTOCOL, vllm.refused, vllm.VllmError).add(
        "POST",
        "/classify",
        vllm.classify,
        body=vllm.ClassificationRequest,
        answer=vllm.ClassificationResponse,
        statuses={404: "No such model"},
    )


def _add_open_inference(app: FastAPI, service: Service) -> None:
    v2 = open_inference
    routes = Routes(app, service, v2.PROTOCOL, v2.refused, v2.InferenceError)
    unready, unknown = {503: "Not ready"}, {404: "No such model"}
    for path in ("/v2", "/v2/"):
        routes.add("GET", path, v2.server, answer=v2.ServerMetadata, always=True, open_to_all=True)
    routes.add("GET", "/v2/health/live", v2.live, always=True, open_to_all=True)
    routes.add("GET", "/v2/health/ready", v2.ready, statuses=unready, always=True, open_to_all=True)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes.add("GET", path, v2.model, answer=v2.ModelMetadata, statuses=unknown)
        routes.add("GET", f"{path}/ready", v2.model_ready, statuses=unknown)
        routes.add(
            "POST", f"{path}/infer", v2.infer, body=v2.InferRequest, answer=v2.InferResponse, statuses=unknown
        )
    routes.add("POST", "/v2/repository/index", v2.index)
    routes.add("POST", "/v2/repository/models/{name}/load", v2.load, statuses=unknown)
    routes.add("POST", "/v2/repository/models/{name}/unload", v2.unload, statuses=unknown)


async def _unknown_path(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response(
        {"error": error.detail, "kind": "unknown_path"}, error.status_code, dict(error.headers or {})
    )


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of bodies that FastAPI does not parse itself."""
    from fastapi.openapi.utils import get_openapi

    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in _schemas_of(app).items():
            schemas.setdefault(name, schema)
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{}, {"token": []}]
        app.openapi_schema = found
    return app.openapi_schema


class _SecurityHeaders:
    """Adds to every response the headers that tell a browser what not to do with it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer as an ASGI application."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = (header for header in self._headers if header[0] not in present)
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
