"""The route that scores an uploaded sound file.

FastAPI reads the annotations of the functions in here, so they are not postponed.
"""

import asyncio

from pipelines.service.errors import ServiceError
from pipelines.service.generation_routes import ANSWERS
from pipelines.service.metrics import Metrics
from pipelines.service.scoring import Scoring
from pipelines.service.settings import ServiceSettings
from pipelines.service.uploads import Uploads


FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}, "prompt": {"type": "string"}},
}


def add_scoring_routes(app, scoring: Scoring, settings: ServiceSettings, metrics: Metrics, uploads: Uploads) -> None:
    """Adds `/v1/score` to an app."""
    from fastapi import Request
    from starlette.datastructures import UploadFile

    body = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}

    @app.post("/v1/score", responses=ANSWERS, openapi_extra=body)
    async def score(request: Request) -> dict:
        """How good a file sounds and, with a prompt, how well it follows it: as form fields `file` and `prompt`."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ServiceError("invalid_request", "Send a form: `file` and, if you like, `prompt`.")
        with uploads.place(request):
            async with uploads.in_time():
                content, prompt = await read_form(request)
            result = await asyncio.to_thread(scoring.score, content, prompt)
        metrics.scored.inc()
        return result

    async def read_form(request: Request) -> tuple[bytes, str | None]:
        try:
            async with request.form(max_files=1, max_fields=4, max_part_size=settings.max_body_bytes) as form:
                file, prompt = form.get("file"), form.get("prompt")
                if not isinstance(file, UploadFile) or isinstance(prompt, UploadFile):
                    raise ServiceError("invalid_request", "`file` must be a sound file, and `prompt` a text.")
                return await file.read(), prompt
        except (ValueError, KeyError, AttributeError) as error:  # a form that is none
            raise ServiceError("invalid_request", f"The form cannot be read: {error}") from error
