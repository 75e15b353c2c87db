"""The endpoints that FastAPI serves: what tells about the service. `/quantize` and `/grad` are in `asgi`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from service import metrics, page
from service.answer import problem
from service.asgi import PROBLEM_CODE
from service.core import Core
from service.dtypes import DTYPES
from service.errors import MethodNotAllowed, NotFound, StequantError
from service.ops.catalogue import catalogue

ASSETS = "/docs/assets"
router = APIRouter()


def core_of(request: Request) -> Core:
    """The core of the application that serves this request."""
    core: Core = request.app.state.core
    return core


@router.get("/operators", summary="The operators, their parameters, formulas and gradients", tags=["about"])
async def operators() -> dict[str, list[dict[str, Any]]]:
    """Every operator that `op` may name."""
    return {"operators": catalogue()}


@router.get("/healthz", summary="Whether the process answers", tags=["probes"])
async def healthz() -> dict[str, str]:
    """200 as long as the event loop runs. A liveness probe."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Whether calls are welcome: device, dtypes, draining",
    tags=["probes"],
    responses={503: {"description": "Not ready, and why", "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def readyz(request: Request) -> JSONResponse:
    """200 when the device gives known bits and the server is not draining, else 503. A readiness probe."""
    core = core_of(request)
    ready, fault = await core.readiness()
    content = {
        "ready": ready,
        "draining": core.draining,
        "device": core.engine.device.name,
        "reason": core.engine.device.reason,
        "fault": None if fault is None else fault.detail,
        "dtypes": list(DTYPES),
        "max_body_bytes": core.settings.max_body_bytes,
    }
    return JSONResponse(content, 200 if ready else 503, None if ready else {"retry-after": "1"})


@router.get("/metrics", summary="Prometheus metrics", tags=["about"], response_class=Response)
async def prometheus(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format; summed over the workers."""
    return Response(core_of(request).exposition(), media_type=metrics.MEDIA_TYPE)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Swagger UI, its assets served from here, so that it works without a network."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="stequant",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        swagger_ui_parameters={"tryItOutEnabled": True},
    )


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page: chains and their staircases to look at and to try."""
    return _file_of_page(request, page.INDEX)


@router.get("/page/{name}", include_in_schema=False)
async def file_of_page(request: Request, name: str) -> Response:
    """What the page is made of."""
    return _file_of_page(request, name)


def _file_of_page(request: Request, name: str) -> Response:
    file = page.files().get(name)
    if file is None:
        raise HTTPException(404)
    if file.is_known(request.headers.get("if-none-match")):
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer the framework's own errors as problem documents."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            return _response(
                request,
                MethodNotAllowed(f"{path} does not answer {request.method[:20]}", allow=(error.headers or {}).get("Allow", "GET")),
            )
        if error.status_code == 404:
            return _response(request, NotFound(f"there is nothing at {path[:200]!r}; /docs lists what there is"))
        return _response(request, StequantError(str(error.detail)))


def _response(request: Request, error: StequantError) -> Response:
    request.scope[PROBLEM_CODE] = error.code
    answer = problem(error, request.url.path)
    return Response(
        b"".join(answer.pieces),
        answer.status,
        {name.decode(): value.decode() for name, value in answer.headers},
        answer.media_type,
    )
