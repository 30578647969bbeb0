"""Quality-aware masked diffusion transformer for text-to-music generation (QA-MDT).

    from qamdt import QAMDTPipeline, WhisQScorer

What most people look for is imported when it is asked for: `import qamdt` alone is instant.
Every name has one home, and that is where the project's own code takes it from:

    from pipelines.pipeline_qamdt import QAMDTPipeline
    from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
"""

__version__ = "0.1.0"

# A signpost, not a dependency: no module of `qamdt` follows it. `__init__.pyi` tells type checkers the same.
_HOMES = {
    "QAMDTAudioToAudioPipeline": "pipelines.pipeline_audio_to_audio",
    "QAMDTInpaintPipeline": "pipelines.pipeline_inpaint",
    "QAMDTPipeline": "pipelines.pipeline_qamdt",
    "WhisQScorer": "whisq.scorer",
}
__all__ = ["QAMDTAudioToAudioPipeline", "QAMDTInpaintPipeline", "QAMDTPipeline", "WhisQScorer", "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
