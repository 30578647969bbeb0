"""Routes of generations: ask for one, look at it, follow it, take it away.

FastAPI reads the annotations of the functions in here, so they are not postponed.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator

from pipelines.media_spec import body_schema
from pipelines.service.acceptance import Order, accept
from pipelines.service.bodies import read_alias, read_order
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.jobs import Job
from pipelines.service.metrics import Metrics
from pipelines.service.rendering import MEDIA_TYPES, file_names, render_job, render_progress
from pipelines.service.settings import ServiceSettings
from pipelines.service.uploads import Uploads


MAX_WAIT_IN_S = 300
POLL_IN_S = 0.1
KEEP_ALIVE_IN_S = 15.0
ANSWERS = {
    400: {"description": "The request makes no sense."},
    404: {"description": "There is no such thing."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full."},
}
# What the id that a client is given is good for, so that tools that read the document can follow it.
FOLLOWERS = ("get_generation", "delete_generation", "cancel_generation", "get_events")
LINKS = {name: {"operationId": name, "parameters": {"generation_id": "$response.body#/id"}} for name in FOLLOWERS}
ALIAS_SCHEMA = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"type": "string"},
        "audio_length": {"type": "number"},
        "negative_prompt": {"type": "string"},
        "guidance_scale": {"type": "number"},
        "num_inference_steps": {"type": "integer"},
        "seed": {"type": "integer"},
        "response_format": {"type": "string", "enum": ["wav", "flac", "ogg", "mp3"]},
    },
}


def add_generation_routes(
    app, queue: GenerationQueue, settings: ServiceSettings, metrics: Metrics, uploads: Uploads
) -> None:
    """Adds the routes under `/v1/generations`, and `/v1/audio/generate`, to an app."""
    from fastapi import Request
    from fastapi.responses import FileResponse, Response, StreamingResponse

    def submit(order: Order) -> Job:
        try:
            return accept(order, queue, settings)
        except ValueError as error:
            raise ServiceError("invalid_request", str(error)) from error
        except ServiceError as error:
            if error.code == "rate_limited":
                metrics.refused.inc()
            raise

    async def receive(request: Request) -> Job:
        with uploads.place(request):
            body = await uploads.read(request)
            order = await asyncio.to_thread(read_order, body, queue, settings, str(request.base_url))
            return await asyncio.to_thread(submit, order)

    def render(job: Job, request: Request) -> dict:
        if job.error is not None:
            raise ServiceError(job.error["code"], job.error["message"], id=job.id)
        return render_job(job, queue, str(request.base_url))

    @app.post(
        "/v1/generations",
        status_code=201,
        responses=ANSWERS | {201: {"description": "It is accepted.", "links": LINKS}},
        openapi_extra=_json_body(body_schema()),
    )
    async def create_generation(request: Request) -> dict:
        """Asks for music; with the header `Prefer: wait=N` the answer comes when it is made, or after N seconds."""
        job = await receive(request)
        wait = re.fullmatch(r"\s*wait=(\d{1,6})\s*", request.headers.get("prefer", ""))
        if wait is not None:
            await _wait(job, min(int(wait[1]), MAX_WAIT_IN_S))
        return render(job, request)

    @app.get("/v1/generations/{generation_id}", responses=ANSWERS)
    async def get_generation(generation_id: str, request: Request) -> dict:
        """How far it is, how many come before it, and where its sound is."""
        return render(queue.get(generation_id), request)

    @app.delete("/v1/generations/{generation_id}", status_code=204, responses=ANSWERS)
    async def delete_generation(generation_id: str) -> Response:
        """Cancels it and removes what it made."""
        queue.delete(generation_id)
        return Response(status_code=204)

    @app.post("/v1/generations/{generation_id}/cancel", responses=ANSWERS)
    async def cancel_generation(generation_id: str, request: Request) -> dict:
        """Cancels it; what is finished stays."""
        return render(queue.cancel(generation_id), request)

    @app.get(
        "/v1/generations/{generation_id}/events",
        responses=ANSWERS | {200: {"content": {"text/event-stream": {}}}},
        response_class=StreamingResponse,
    )
    async def get_events(generation_id: str, request: Request) -> StreamingResponse:
        """Follows it: server-sent events `progress`, and at the end `complete`, `canceled` or `error`."""
        job = queue.get(generation_id)
        lines = _follow(job, queue, str(request.base_url))
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @app.get("/v1/generations/{generation_id}/files/{name}", responses=ANSWERS, response_class=FileResponse)
    async def get_file(generation_id: str, name: str) -> FileResponse:
        """A sound file, the record of how it was made, or the recording that it begins with."""
        job = queue.get(generation_id)
        if name not in file_names(job):
            raise ServiceError("not_found", f"The generation has no file {name!r}.")
        path = queue.jobs.place(job) / name
        media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
        return FileResponse(path, media_type=media_type, filename=f"{job.id}-{name}")

    @app.post("/v1/audio/generate", responses=ANSWERS, openapi_extra=_json_body(ALIAS_SCHEMA))
    async def generate_audio(request: Request) -> Response:
        """Answers with the sound itself; a client that goes away gives it up."""
        order = read_alias(await request.body(), queue, settings)
        job = await asyncio.to_thread(submit, order)
        while not job.is_done:
            await asyncio.sleep(POLL_IN_S)
            if await request.is_disconnected():
                queue.cancel(job.id)
                return Response(status_code=499)
        render(job, request)  # raises what went wrong
        if not job.files:
            raise ServiceError("unavailable", "The generation was cancelled.")
        content = await asyncio.to_thread((queue.jobs.place(job) / job.files[0]).read_bytes)
        return Response(content, media_type=MEDIA_TYPES[job.suffix], headers={"x-generation-id": job.id})


def _json_body(schema: dict) -> dict:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _wait(job: Job, timeout_s: float) -> None:
    waited = 0.0
    while not job.is_done and waited < timeout_s:
        await asyncio.sleep(POLL_IN_S)
        waited += POLL_IN_S


async def _follow(job: Job, queue: GenerationQueue, base_url: str) -> AsyncIterator[str]:
    """Yields the events of a job until it is done."""
    last, quiet = None, 0.0
    while not job.is_done:
        now = {"progress": render_progress(job), "position": queue.position(job)}
        if now != last:
            yield _event("progress", now["progress"] or {"position": now["position"]})
            last, quiet = now, 0.0
        elif quiet >= KEEP_ALIVE_IN_S:
            yield ": keep-alive\n\n"
            quiet = 0.0
        await asyncio.sleep(POLL_IN_S)
        quiet += POLL_IN_S
    if job.error is not None:
        yield _event("error", job.error)
    else:
        yield _event(job.status, render_job(job, queue, base_url))


def _event(name: str, data: dict) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
