"""Inference: the diffusers pipelines, their command line, service and page."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from pipelines.pipeline_audio_to_audio import QAMDTAudioToAudioPipeline
    from pipelines.pipeline_inpaint import QAMDTInpaintPipeline
    from pipelines.pipeline_qamdt import QAMDTPipeline
    from pipelines.request import GenerationRequest

__all__ = ["GenerationRequest", "QAMDTAudioToAudioPipeline", "QAMDTInpaintPipeline", "QAMDTPipeline"]
_MODULES = {
    "GenerationRequest": "request",
    "QAMDTAudioToAudioPipeline": "pipeline_audio_to_audio",
    "QAMDTInpaintPipeline": "pipeline_inpaint",
    "QAMDTPipeline": "pipeline_qamdt",
}


def __getattr__(name: str) -> object:
    """Imports a pipeline when it is asked for: torch and diffusers take seconds, and the command line reads without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
