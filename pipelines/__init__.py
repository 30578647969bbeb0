"""Inference: the diffusers pipeline, its command line, its service and its page.

`from pipelines import QAMDTPipeline` imports it when it is asked for, so that a command's `--help` does not wait for it.
"""

_HOMES = {"GenerationRequest": "pipelines.request", "QAMDTPipeline": "pipelines.pipeline_qamdt"}
__all__ = ["GenerationRequest", "QAMDTPipeline"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
