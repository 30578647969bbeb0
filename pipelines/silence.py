"""Says less: without bars while models are loaded, and without warnings where nobody reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import transformers


@contextmanager
def loading_bars(*, shown: bool) -> Iterator[None]:
    """Hides the bars that diffusers and transformers draw while they load."""
    libraries = [] if shown else [diffusers.utils.logging, transformers.utils.logging]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


@contextmanager
def request_warnings(*, shown: bool) -> Iterator[None]:
    """Hides what the pipeline has to say about a request; where clips go, the record beside them says it."""
    logger = logging.getLogger("pipelines.pipeline_base")
    level = logger.level
    logger.setLevel(level if shown else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
