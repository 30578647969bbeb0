"""What `qamdt serve` does: the service, until it is told to stop."""

from __future__ import annotations

import importlib.util
import logging

from pipelines.service.settings import ServiceSettings, allowed_hosts


logger = logging.getLogger(__name__)


def check_packages(extra: str, *names: str) -> None:
    """Refuses a command whose packages are not installed.

    Raises:
        ImportError: Some are missing.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ImportError(f"This needs {', '.join(missing)}; install it with `pip install 'qamdt[{extra}]'`.")


def serve(settings: ServiceSettings, *, host: str, port: int, with_studio: bool = False) -> None:
    """Answers requests until SIGTERM or Ctrl-C; what is being made then is finished, what waits is kept.

    Args:
        settings: Limits and places.
        host: Address to answer at.
        port: Port to answer at.
        with_studio: Whether the page is there too.
    """
    check_packages("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    if with_studio:
        check_packages("studio", "gradio", "matplotlib")
    import uvicorn

    from pipelines.service.app import DRAIN_IN_S, create_app, guarded

    logging.basicConfig(format="%(message)s")
    app = create_app(settings)
    if with_studio:
        from pipelines.studio.page import mount_studio

        app = mount_studio(app)
    if not allowed_hosts(host) and settings.api_key is None:
        logger.warning(f"Anyone who reaches {host}:{port} may use this; set QAMDT_API_KEY to ask for a key.")
    logger.warning(f"http://{host}:{port}/{'' if with_studio else 'openapi.json'}")
    uvicorn.run(
        guarded(app, settings),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(DRAIN_IN_S),
        h11_max_incomplete_event_size=1 << 16,
        http="h11",
        ws="none",
        server_header=False,
    )
