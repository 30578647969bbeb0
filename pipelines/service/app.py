"""The service as an ASGI app: `/health`, `/metrics`, models, generations and scores.

Routes are those of the Generative Media Spec as `diffusers-cli serve` has them, `POST /v1/audio/generate`, which answers
with the sound itself, and `POST /v1/score`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipelines.service.engine import Engine
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.generation_routes import add_generation_routes
from pipelines.service.guard import Guard
from pipelines.service.metrics import Metrics
from pipelines.service.model_routes import add_model_routes
from pipelines.service.scoring import Scoring
from pipelines.service.scoring_routes import add_scoring_routes
from pipelines.service.settings import ServiceSettings
from pipelines.service.uploads import Uploads
from qamdt import __version__


DRAIN_IN_S = 60.0


def create_app(settings: ServiceSettings):
    """Builds the app; its queue works from the moment that the app is started until it is stopped.

    Returns:
        A `fastapi.FastAPI`. Behind `Guard`, as `guarded` builds it, it is fit for strangers.
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    settings.folder.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    queue = GenerationQueue(
        Engine(settings.model, settings.device),
        settings.folder,
        max_waiting=settings.max_waiting,
        keep_hours=settings.keep_hours,
        on_finish=metrics.count,
    )
    metrics.watch(queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close(DRAIN_IN_S)

    # Without pages of documentation, which load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(
        title="qamdt",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.queue, app.state.settings, app.state.scoring = queue, settings, Scoring(settings)

    @app.exception_handler(ServiceError)
    async def answer_error(request: Request, error: ServiceError) -> JSONResponse:
        headers = {"retry-after": "5"} if error.code in ("rate_limited", "unavailable") else None
        return JSONResponse(error.to_dict(), status_code=error.status, headers=headers)

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = "not_found" if error.status_code == 404 else "invalid_request"
        body = ServiceError(code, str(error.detail)).to_dict()
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return JSONResponse(ServiceError("invalid_request", faults).to_dict(), status_code=400)

    add_model_routes(app, queue, metrics)
    uploads = Uploads(settings)
    add_generation_routes(app, queue, settings, metrics, uploads)
    add_scoring_routes(app, app.state.scoring, settings, metrics, uploads)
    return app


def guarded(app, settings: ServiceSettings) -> Guard:
    """The app behind its guard."""
    return Guard(app, settings)
