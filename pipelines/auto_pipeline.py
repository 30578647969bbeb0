"""Lets diffusers' `AutoPipelineForText2Audio` find our pipeline, without a wait for it.

The table that it looks in lies in a module that imports every pipeline of diffusers, which takes seconds. So the entry
is made when somebody imports that module, and not before.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


AUTO_PIPELINE = "diffusers.pipelines.auto_pipeline"


def register_for_text_to_audio(name: str, pipeline_class: type) -> None:
    """Enters a pipeline into the table of `AutoPipelineForText2Audio`, now or when the table comes into being.

    Args:
        name: What kind of model it is, such as "qamdt".
        pipeline_class: Its class; a saved pipeline names it in `model_index.json`.
    """

    def enter(module: ModuleType) -> None:
        module.AUTO_TEXT2AUDIO_PIPELINES_MAPPING[name] = pipeline_class

    if AUTO_PIPELINE in sys.modules:
        enter(sys.modules[AUTO_PIPELINE])
    else:
        sys.meta_path.insert(0, _AfterImport(enter))


class _AfterImport(MetaPathFinder):
    """Stands in the way of one import, and calls `enter` with the module once it is there."""

    def __init__(self, enter):
        self.enter = enter

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != AUTO_PIPELINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                self.enter(module)

            spec.loader.exec_module = execute_and_enter
        return spec
