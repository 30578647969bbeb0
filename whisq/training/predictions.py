"""What a model says about rated clips, and the figure that early stopping looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from whisq.evaluation.metrics import measure_agreement
from whisq.modeling_whisq import WhisQModel
from whisq.ratings import Predictions, RatedClip
from whisq.training.dataset import CachedClips
from whisq.training.finetuning import FineTunedEncoders


@torch.inference_mode()
def predict(
    model: WhisQModel,
    cached: CachedClips,
    clips: Sequence[RatedClip],
    *,
    batch_size: int,
    device: torch.device,
    encoders: FineTunedEncoders | None = None,
) -> Predictions:
    """Scores clips as a whole, in evaluation mode.

    Args:
        model: The scorer; its mode is restored afterwards.
        cached: The hidden states.
        clips: The clips with their prompts.
        batch_size: Clips scored at once.
        device: Where `model` lies.
        encoders: The encoders that learnt with `model`, on the same device; their mode is restored as well.
    """
    encoders = encoders or FineTunedEncoders()
    modes = [(module, module.training) for module in (model, encoders)]
    for module, _ in modes:
        module.eval()
    quality, alignment = [], []
    for start in range(0, len(clips), batch_size):
        some = clips[start : start + batch_size]
        batch = cached.collate(some, hears=encoders.audio is not None, reads=encoders.text is not None).to(device)
        batch = encoders(batch)
        output = model(batch.audio_hidden_states, batch.audio_mask, batch.text_hidden_states, batch.text_mask)
        has_prompt = torch.tensor([clip.prompt is not None for clip in some])
        quality.append(output.overall_quality.float().cpu())
        alignment.append(output.text_alignment.float().cpu().masked_fill(~has_prompt, math.nan))
    for module, was_training in modes:
        module.train(was_training)
    return Predictions(
        overall_quality=torch.cat(quality).double().numpy(), text_alignment=torch.cat(alignment).double().numpy()
    )


def dev_score(clips: Sequence[RatedClip], predictions: Predictions) -> dict[str, float]:
    """Returns what early stopping looks at: `score`, the mean of the rank correlations of what was rated."""
    rated = [i for i, clip in enumerate(clips) if clip.text_alignment is not None]
    quality = measure_agreement([clip.overall_quality for clip in clips], predictions.overall_quality)
    scores = {"overall_quality_srcc": quality.srcc}
    if rated:
        ratings = [clips[i].text_alignment for i in rated]
        scores["text_alignment_srcc"] = measure_agreement(ratings, predictions.text_alignment[rated]).srcc
    # A constant prediction ranks nothing.
    return scores | {"score": math.fsum(0.0 if math.isnan(s) else s for s in scores.values()) / len(scores)}
