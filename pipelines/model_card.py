"""The model card that `save_pretrained` writes, where there is none yet: what the folder is, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(
    name: str,
    components: Mapping[str, Any],
    *,
    sampling_rate: int,
    seconds: float,
    scorer: str | None,
    known: Mapping[str, Any],
) -> str:
    """Returns the text of a card.

    Args:
        name: What the model is called: its Hub id, or the name of its folder.
        components: The parts of the pipeline.
        sampling_rate: Samples per second, in Hz.
        seconds: The length that the model was built for.
        scorer: Whose scores the model takes; `None` if it knows none.
        known: Front matter of the card of the model that this one came from; what is still true of it stays.
    """
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-audio"}
    facts |= {key: known[key] for key in ("license", "language", "cannot") if key in known}
    facts["tags"] = ["text-to-audio", "music", "diffusers", "qa-mdt"]
    parts = [(part, component) for part, component in components.items() if hasattr(component, "parameters")]
    rows = [f"| `{part}` | `{type(component).__name__}` | {_size(component)} |" for part, component in parts]
    quality = (
        "Quality is asked for in words."
        if scorer is None
        else f"Quality is asked for in words or as a score of {scorer}, from 1 to 5."
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
        f"{sampling_rate} Hz mono, {seconds:g} s unless asked otherwise. {quality}",
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
        "This card was written when the model was saved. It does not say what the model learnt from: please add that, "
        "and a licence.",
        "",
    ]
    return "\n".join(lines)


def _size(component: Any) -> str:
    return f"{sum(parameter.numel() for parameter in component.parameters()) / 1e6:.2f} M"
