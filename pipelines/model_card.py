"""The model card that `save_pretrained` writes, where there is none yet: what the folder is, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.model_limits import read_front_matter


if TYPE_CHECKING:
    from pipelines.pipeline_base import QAMDTPipelineBase


def write_card(pipe: QAMDTPipelineBase, folder: Path, *, name: str, origin: Path | None) -> None:
    """Writes `README.md` into a model folder; a card that lies there stays as it is.

    Args:
        pipe: The pipeline that was saved there.
        folder: The model folder.
        name: What the model is called: its Hub id, or the name of the folder.
        origin: The folder that the pipeline came from, whose card says what the model cannot do.
    """
    if not (folder / "README.md").exists():
        facts = {} if origin is None else read_front_matter(origin / "README.md")
        (folder / "README.md").write_text(describe(pipe, name, facts), encoding="utf-8")


def describe(pipe: QAMDTPipelineBase, name: str, known: dict[str, Any]) -> str:
    """The text of the card; of `known`, the front matter of an earlier one, stays what is still true."""
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-audio"}
    facts |= {key: known[key] for key in ("license", "language", "cannot") if key in known}
    facts["tags"] = ["text-to-audio", "music", "diffusers", "qa-mdt"]
    parts = [(part, component) for part, component in pipe.components.items() if hasattr(component, "parameters")]
    rows = [f"| `{part}` | `{type(component).__name__}` | {_size(component)} |" for part, component in parts]
    stats = pipe.quality_stats
    quality = (
        "Quality is asked for in words."
        if stats is None
        else f"Quality is asked for in words or as a score of {stats.scorer}, from 1 to 5."
    )
    lines = [
        "---",
        yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        "Music from text, at the quality that is asked for: a quality-aware masked diffusion transformer "
        "([QA-MDT](https://arxiv.org/abs/2405.15863)).",
        "",
        f"{pipe.sampling_rate} Hz mono, {pipe.native_audio_length_in_s:g} s unless asked otherwise. {quality}",
        "",
        "| part | class | parameters |",
        "|---|---|---|",
        *rows,
        "",
        "```python",
        "from qamdt import QAMDTPipeline",
        "from qamdt.audio import write_audio",
        "",
        f'pipe = QAMDTPipeline.from_pretrained("{name}")',
        'output = pipe("calm solo piano ballad", quality="high")',
        'write_audio("music.wav", output.audios[0], output.sampling_rate)',
        "```",
        "",
        "This card was written by `save_pretrained`. It does not say what the model learnt from: please add that, and "
        "a licence.",
        "",
    ]
    return "\n".join(lines)


def _size(component: Any) -> str:
    return f"{sum(parameter.numel() for parameter in component.parameters()) / 1e6:.2f} M"
