"""`save_pretrained` and `push_to_hub` of our pipelines: the folder also gets a model card and a media manifest."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from diffusers import ModelMixin
from huggingface_hub import create_repo, file_exists

from pipelines.lora import refuse_adapters
from pipelines.media_spec import MANIFEST_NAME, model_manifest
from pipelines.model_card import model_card
from pipelines.model_limits import CARD_NAME, read_front_matter
from qamdt.files import read_json, write_json, write_text


# diffusers asks for a Python file for each class that is not its own. These lead to the installed package.
SHIM = """# Leads diffusers to the package `qamdt`, which has to be installed.
from {module} import {name}
"""


class SharingMixin:
    """Saves pipelines for others."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        token: str | None = None,
    ) -> None:
        """Saves the pipeline, a model card if the folder has none, and the manifest of what a call can be told.

        Args:
            save_directory: Folder to write to.
            safe_serialization: Whether weights are written as safetensors.
            variant: Part of the names of weight files, such as "fp16".
            max_shard_size: Larger weight files are cut up.
            push_to_hub: Whether to upload the folder afterwards.
            repo_id: Repository to upload to; named after the folder when `None`.
            commit_message: What the upload is called.
            private: Whether a new repository is private.
            create_pr: Whether to propose the upload rather than make it.
            token: Access token of the Hub; the one of `hf auth login` when `None`.

        Raises:
            ValueError: A part has adapters.
        """
        refuse_adapters(self.components)
        folder = Path(save_directory)
        name = repo_id or folder.resolve().name
        super().save_pretrained(folder, safe_serialization, variant, max_shard_size)
        self.save_card(folder, name)
        if push_to_hub:
            self.push_to_hub(name, commit_message, private, token, create_pr, safe_serialization, variant)

    def save_card(self, folder: Path, name: str, *, transformer: ModelMixin | None = None) -> None:
        """Writes a model card, if the folder has none, and the manifest of what a call can be told.

        Args:
            folder: Folder to write to.
            name: What the model is called.
            transformer: The network that the folder will hold; the pipeline's when `None`.
        """
        parts = self.components | ({} if transformer is None else {"transformer": transformer})
        seconds = parts["transformer"].config.sample_size[0] * self._latent_frame_in_s
        if not (folder / CARD_NAME).exists():
            card = model_card(
                name,
                parts,
                sampling_rate=self.sampling_rate,
                seconds=seconds,
                scorer=None if self.config.quality_stats is None else self.config.quality_stats["scorer"],
                known={} if self._origin is None else read_front_matter(self._origin / CARD_NAME),
            )
            write_text(folder / CARD_NAME, card)
        write_json(folder / MANIFEST_NAME, model_manifest(name, seconds=seconds))

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Uploads the pipeline with its model card to a Hub repository; a card that is there stays.

        Arguments are those of `save_pretrained`. Returns the address of the commit.
        """
        repo_id = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, repo_id=repo_id)
            write_shims(self, Path(folder))
            if file_exists(repo_id, CARD_NAME, token=token):
                (Path(folder) / CARD_NAME).unlink()
            return self._upload_folder(
                folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr
            )


def write_shims(pipe: SharingMixin, folder: Path) -> None:
    """Writes the Python files that `DiffusionPipeline.from_pretrained` of a Hub repository asks for.

    `QAMDTPipeline.from_pretrained` needs none of them and does not download them.
    """
    for part, component in pipe.components.items():
        module = type(component).__module__
        if module.startswith("qamdt."):
            shim = SHIM.format(module=module, name=type(component).__name__)
            (folder / part / f"{module}.py").write_text(shim, encoding="utf-8")
    pipeline_class = type(pipe)
    shim = SHIM.format(module=pipeline_class.__module__, name=pipeline_class.__name__)
    (folder / "pipeline.py").write_text(shim, encoding="utf-8")


def holds_only_shims(folder: Path) -> bool:
    """Whether the Python files beside the weights of a model folder are, to the letter, those that we write."""
    index = read_json(folder / "model_index.json")
    for path in folder.glob("*/*.py"):
        module, name = index.get(path.parent.name, [None, None])
        is_ours = path.stem == module and module.startswith("qamdt.")
        if not is_ours or path.read_text(encoding="utf-8") != SHIM.format(module=module, name=name):
            return False
    return any(folder.glob("*/*.py"))
