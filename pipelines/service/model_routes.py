"""Routes that tell how the service is, and which model it has."""

from pipelines.media_spec import MODALITIES, SPEC_VERSION, TASKS, model_manifest
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.metrics import Metrics


def add_model_routes(app, queue: GenerationQueue, metrics: Metrics) -> None:
    """Adds `/health`, `/metrics` and `/v1/models` to an app."""
    from fastapi.responses import JSONResponse, Response

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the service can make music."""
        if queue.failure is not None:
            return JSONResponse({"status": "unhealthy", "reason": queue.failure}, status_code=503)
        return JSONResponse({"status": "ok", "waiting": queue.num_waiting})

    @app.get("/metrics")
    async def get_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models() -> dict:
        """The one model."""
        return {"data": [{"id": queue.engine.model_id, "modalities": MODALITIES, "tasks": list(TASKS)}]}

    @app.get("/v1/models/{model_id:path}", responses={404: {"description": "Another model."}})
    async def get_model(model_id: str) -> dict:
        """What the model can be told."""
        if model_id != queue.engine.model_id:
            raise ServiceError("not_found", f"The model here is {queue.engine.model_id!r}, got {model_id!r}.")
        return {
            "spec": SPEC_VERSION,
            "manifest": model_manifest(model_id, seconds=queue.engine.native_seconds),
            "server": {"tasks": {task: {} for task in TASKS}, "capabilities": ["sse", "wait", "cancel"]},
        }
