"""`create_app(settings)`: the only place where the parts are put together."""

from __future__ import annotations

import importlib.resources
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from service import __version__, openapi, routes
from service.asgi import HotPaths
from service.core import Core
from service.device.devices import Device, choose
from service.device.engine import Engine
from service.metrics import Metrics
from service.oip import description as oip_description
from service.oip import routes as oip_routes
from service.oip.inference import OpenInference
from service.settings import Settings
from service.tracing.choice import spans_for

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


def create_app(
    settings: Settings | None = None,
    *,
    worker: int = 0,
    device: Device | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The service as an ASGI application, for any ASGI server.

    Its lifespan opens the device, warms it up, and closes it. `app.state.core` is what the parts share.
    `device` is another device than the settings name. Requests are traced by `tracer_provider`, or by the one that the process
    has set for OpenTelemetry, if there is any. Raises `DeviceFault` when the device that the settings name is not there.
    """
    settings = settings if settings is not None else Settings()
    device = device if device is not None else choose(settings.device, worker)
    spans = spans_for(tracer_provider, scheme="http" if settings.tls_cert_file is None else "https")
    metrics = Metrics()
    metrics.build_info.labels(__version__, platform.python_version(), version("torch"), device.name).set(1)
    core = Core(settings, Engine(device, device_timeout_s=settings.device_timeout_s), metrics, spans)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await core.engine.submit(core.engine.warm_up)
        core.ready = True
        try:
            yield {"core": core}
        finally:
            core.ready = False
            core.engine.close()

    app = FastAPI(title="stequant", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.core = core
    inference = OpenInference(core)
    core.speak(inference)
    app.include_router(routes.router)
    app.include_router(oip_routes.router(inference))
    app.mount(routes.ASSETS, StaticFiles(directory=str(importlib.resources.files("fastapi_offline") / "static")))
    routes.install_problem_handlers(app)
    openapi.install(app, settings, {oip_description.PATH: oip_description.infer()})
    app.add_middleware(HotPaths, core=core)
    return app
