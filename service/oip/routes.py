"""What the protocol answers beside calls: health, models, statistics, and regions of shared memory."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse

from service import __version__
from service.errors import BadRegion, BodyTooLarge, MalformedBody, NotFound, NotReady
from service.oip import models
from service.oip.inference import OpenInference
from service.oip.models import MODELS, VERSION, Model
from service.oip.regions import Region
from service.oip.request import size_at, text_at
from service.wire import json

# A registration has three short members.
_MAX_BODY_BYTES = 16 * 1024
_EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "statistics")
_SHARED_MEMORY = "system_shared_memory"

ModelName = Annotated[str, Path(description="an operator, or `chain`; with `.grad` behind it, its gradient")]
RegionName = Annotated[str, Path(description="how calls name the region")]


def _asked(request: Request, model: ModelName) -> Model:
    return models.find(model, request.path_params.get("version", VERSION))


AskedModel = Annotated[Model, Depends(_asked)]


def router(service: OpenInference) -> APIRouter:
    """All endpoints but those of calls."""
    routes = APIRouter(tags=["open inference protocol"])
    _add_server(routes, service)
    _add_models(routes, service)
    _add_system_shared_memory(routes, service)
    _add_cuda_shared_memory(routes)
    return routes


def _add_server(routes: APIRouter, service: OpenInference) -> None:
    core = service.core

    @routes.get("/v2", summary="The server's name, version, and extensions of the protocol")
    async def server() -> JSONResponse:
        shared_memory = [_SHARED_MEMORY] if service.regions.are_offered else []
        return JSONResponse({"name": models.PLATFORM, "version": __version__, "extensions": [*_EXTENSIONS, *shared_memory]})

    @routes.get("/v2/health/live", summary="Whether the process answers", response_class=Response)
    async def live() -> Response:
        return Response(status_code=200)

    @routes.get("/v2/health/ready", summary="Whether calls are welcome", response_class=Response)
    async def ready() -> Response:
        await check_ready()
        return Response(status_code=200)

    @routes.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    @routes.get("/v2/models/{model}/ready", summary="Whether calls of a model are welcome", response_class=Response)
    async def model_ready(_: AskedModel) -> Response:
        await check_ready()
        return Response(status_code=200)

    @routes.post("/v2/repository/index", summary="The models, and whether they are ready")
    async def repository_index(request: Request) -> JSONResponse:
        wanted = await _document(request)
        is_ready = (await core.readiness()).ready
        only_ready = wanted.get("ready", False)
        if not isinstance(only_ready, bool):
            raise MalformedBody("'ready' must be true or false")
        return JSONResponse([] if only_ready and not is_ready else models.index(ready=is_ready))

    async def check_ready() -> None:
        readiness = await core.readiness()
        if not readiness.ready:
            raise readiness.fault or NotReady("the service is starting or draining, or its device is not ready; /readyz says which")


def _add_models(routes: APIRouter, service: OpenInference) -> None:
    @routes.get("/v2/models/stats", summary="What all models have done in the process that answers")
    async def all_statistics() -> JSONResponse:
        return statistics(*MODELS.values())

    @routes.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    @routes.get("/v2/models/{model}", summary="A model's tensors")
    async def metadata(model: AskedModel) -> JSONResponse:
        return JSONResponse(models.metadata(model))

    @routes.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
    @routes.get("/v2/models/{model}/config", summary="A model's configuration, as Triton describes it, and its parameters")
    async def configuration(model: AskedModel) -> JSONResponse:
        return JSONResponse(models.configuration(model))

    @routes.get("/v2/models/{model}/versions/{version}/stats", include_in_schema=False)
    @routes.get("/v2/models/{model}/stats", summary="What a model has done in the process that answers")
    async def model_statistics(model: AskedModel) -> JSONResponse:
        return statistics(model)

    @routes.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    @routes.post("/v2/models/{model}/infer", include_in_schema=False)
    async def infer_nothing(model: AskedModel) -> Response:
        # Calls of models that there are never come here, but for paths that are written in an odd way.
        raise NotFound(f"model {model.name!r} is called at /v2/models/{model.name}/infer")

    def statistics(*wanted: Model) -> JSONResponse:
        return JSONResponse({"model_stats": [service.statistics.document(model) for model in wanted]})


def _add_system_shared_memory(routes: APIRouter, service: OpenInference) -> None:
    regions = service.regions

    @routes.get("/v2/systemsharedmemory/status", summary="The registered regions of shared memory")
    async def status() -> JSONResponse:
        check_offered()
        return JSONResponse([region._asdict() for region in regions.status()])

    @routes.get("/v2/systemsharedmemory/region/{region}/status", summary="A registered region of shared memory")
    async def region_status(region: RegionName) -> JSONResponse:
        check_offered()
        return JSONResponse([one._asdict() for one in regions.status(region)])

    @routes.post("/v2/systemsharedmemory/region/{region}/register", summary="Name a range of a shared memory object")
    async def register(region: RegionName, request: Request) -> JSONResponse:
        check_offered()
        regions.register(_region(region, await _document(request)))
        return JSONResponse({})

    @routes.post("/v2/systemsharedmemory/unregister", summary="Forget all regions of shared memory")
    async def unregister_all() -> JSONResponse:
        check_offered()
        regions.unregister()
        return JSONResponse({})

    @routes.post("/v2/systemsharedmemory/region/{region}/unregister", summary="Forget a region of shared memory")
    async def unregister(region: RegionName) -> JSONResponse:
        check_offered()
        regions.unregister(region)
        return JSONResponse({})

    def check_offered() -> None:
        if not regions.are_offered:
            raise NotFound("system shared memory is off; the setting shared_memory_names says which objects may be used")


def _add_cuda_shared_memory(routes: APIRouter) -> None:
    @routes.get("/v2/cudasharedmemory/status", summary="Always an empty list: CUDA shared memory is not offered")
    async def status() -> JSONResponse:
        return JSONResponse([])

    @routes.post("/v2/cudasharedmemory/unregister", include_in_schema=False)
    @routes.post("/v2/cudasharedmemory/region/{region}/unregister", include_in_schema=False)
    async def unregister() -> JSONResponse:
        return JSONResponse({})

    @routes.get("/v2/cudasharedmemory/region/{region}/status", include_in_schema=False)
    @routes.post("/v2/cudasharedmemory/region/{region}/register", include_in_schema=False)
    async def refuse(region: str) -> Response:
        raise NotFound(f"CUDA shared memory is not offered; region {region[:80]!r} can be one of system shared memory")


def _region(name: str, document: dict[str, json.Value]) -> Region:
    key = text_at(document, "key", "")
    byte_size = size_at(document, "byte_size", "")
    if key is None or byte_size is None:
        raise MalformedBody("a registration needs 'key' and 'byte_size'")
    if byte_size == 0:
        raise BadRegion(f"region {name[:80]!r} has 0 bytes; allowed: at least 1")
    return Region(name, key, size_at(document, "offset", "") or 0, byte_size)


async def _document(request: Request) -> dict[str, json.Value]:
    """The JSON object of a short body; an empty body is an empty one."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body has more than {_MAX_BODY_BYTES} bytes")
    document = json.parsed(memoryview(body)) if body else {}
    if not isinstance(document, dict):
        raise MalformedBody("the body must be a JSON object")
    return document
