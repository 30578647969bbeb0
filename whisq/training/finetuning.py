"""Encoders that learn together with the heads: none, one of them, or both.

They hear sound and read prompts instead of cached hidden states, run inside the objective, and are saved next to the
heads, whose settings then name them `./audio_encoder` and `./text_encoder`.

Shapes: B batch, S samples, T audio tokens, L text tokens, D widths.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from whisq.encoders import PADDED_SUFFIX, AudioEncoder, TextEncoder, load_audio_encoder, load_text_encoder
from whisq.modeling_whisq import WhisQModel
from whisq.training.config import EncoderConfig
from whisq.training.dataset import Batch


AUDIO_FOLDER, TEXT_FOLDER = "audio_encoder", "text_encoder"


class FineTunedEncoders(nn.Module):
    """The encoders of a scorer that were not left as they were loaded.

    Args:
        audio: The audio encoder; `None` if it is frozen, and its hidden states come from the cache.
        text: The same for prompts.
    """

    def __init__(self, audio: AudioEncoder | None = None, text: TextEncoder | None = None):
        super().__init__()
        self.audio = audio
        self.text = text

    @property
    def names(self) -> dict[str, str]:
        """What the settings of a model call the encoders that are saved with it."""
        names = {}
        if self.audio is not None:
            suffix = PADDED_SUFFIX if self.audio.name.endswith(PADDED_SUFFIX) else ""
            names["audio_encoder"] = f"./{AUDIO_FOLDER}{suffix}"
        if self.text is not None:
            names["text_encoder"] = f"./{TEXT_FOLDER}"
        return names

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with the hidden states that it lacks."""
        if self.audio is not None:
            states, _ = self.audio.encode(batch.waveforms, batch.num_samples)  # (B, T or more, D)
            batch = replace(batch, audio_hidden_states=states[:, : batch.audio_mask.shape[1]])
        if self.text is not None:
            batch = replace(batch, text_hidden_states=self._encode_prompts(batch))
        return batch

    def save_pretrained(self, folder: Path) -> None:
        """Writes the encoders into the folder of the model that stands on them."""
        if self.audio is not None:
            self.audio.save_pretrained(folder / AUDIO_FOLDER)
        if self.text is not None:
            self.text.save_pretrained(folder / TEXT_FOLDER)

    def _encode_prompts(self, batch: Batch) -> torch.Tensor:
        """Returns the tokens of the prompts `(B, L, D)`, zeros for a clip without one."""
        hidden_states = torch.zeros(*batch.text_mask.shape, self.text.hidden_size, device=batch.text_mask.device)
        prompted = [index for index, prompt in enumerate(batch.prompts) if prompt is not None]
        if prompted:
            states, _ = self.text.encode([batch.prompts[index] for index in prompted])
            hidden_states[prompted] = states
        return hidden_states


def start_finetuning(config: EncoderConfig) -> FineTunedEncoders:
    """Loads the encoders that a run fine-tunes, in training mode with trainable parameters."""
    audio = text = None
    # Loaded encoders may be shared within the process, so it is copies that change.
    if config.finetunes_audio:
        audio = copy.deepcopy(load_audio_encoder(config.audio, revision=config.audio_revision))
    if config.finetunes_text:
        text = copy.deepcopy(load_text_encoder(config.text, revision=config.text_revision))
    return FineTunedEncoders(audio, text).requires_grad_(True).train()


def load_finetuned(model: WhisQModel) -> FineTunedEncoders:
    """Loads the encoders that lie in the folder which `model` was loaded from, on its device."""
    audio = text = None
    if model.config.audio_encoder.startswith("./"):
        audio = load_audio_encoder(model.encoder_name("audio"))
    if model.config.text_encoder.startswith("./"):
        text = load_text_encoder(model.encoder_name("text"))
    return FineTunedEncoders(audio, text).to(model.device)
