"""WhisQ: predicts how good a piece of music is and how well it follows its prompt (https://arxiv.org/abs/2506.05899).

The model reads the hidden states of two encoders (`whisq.encoders`), so a checkpoint holds the heads alone. Encoders
that were fine-tuned with them lie in folders beside it.

    audio tokens ──────────────── pool ── head ── overall quality
      │    ▲
      ▼    │ co-attention ─────── pool ── head ── text alignment
    text tokens (projected)

Shapes: B batch, T audio tokens, L text tokens, D width (that of the audio tokens), W frames.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn import functional as F


LOWEST_SCORE, HIGHEST_SCORE = 1.0, 5.0

# The map of the paper, as far as it is known. `default` is this package's own choice, sized for its embedded encoders.
PRESETS = {
    "paper": {
        "audio_encoder": "openai/whisper-base+30s",
        "text_encoder": "Qwen/Qwen3-0.6B",
        "audio_hidden_size": 512,
        "text_hidden_size": 1024,
        "quality_pool": "mean",
        "use_norms": False,
        "use_products": False,
        "is_bounded": False,
    },
    "default": {},
}


@dataclass
class WhisQOutput(BaseOutput):
    """What the model says about a batch.

    Args:
        overall_quality: Shape `(batch,)`, from 1 to 5.
        text_alignment: Shape `(batch,)`, from 1 to 5; `None` without text.
        audio_hidden_states: Audio tokens `(batch, audio_tokens, dim)` as the alignment loss compares them.
        text_hidden_states: Projected text tokens `(batch, text_tokens, dim)` to compare them with; `None` without text.
    """

    overall_quality: torch.Tensor
    text_alignment: torch.Tensor | None
    audio_hidden_states: torch.Tensor
    text_hidden_states: torch.Tensor | None


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to the other.

    Args:
        dim: Width of both sequences.
        num_heads: Number of heads; must divide `dim`.
        dropout: Share of attention weights dropped in training.
        use_norm: Whether the attended tokens are added to the asking ones and normalised, or taken as they are.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, *, use_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim) if use_norm else None

    def forward(self, hidden_states: torch.Tensor, others: torch.Tensor, others_mask: torch.Tensor) -> torch.Tensor:
        """Lets `hidden_states` `(batch, tokens, dim)` look at the real ones of `others` `(batch, others, dim)`."""
        query, key, value = (
            linear(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, tokens, D / heads)
            for linear, tokens in ((self.to_q, hidden_states), (self.to_k, others), (self.to_v, others))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, others_mask[:, None, None], dropout_p=dropout)
        attended = self.to_out(attended.transpose(1, 2).flatten(2))
        return attended if self.norm is None else self.norm(hidden_states + attended)


class SequenceCoAttention(nn.Module):
    """Both sequences attend to each other, each with weights of its own (the paper's)."""

    def __init__(self, dim: int, num_heads: int, dropout: float, *, use_norm: bool):
        super().__init__()
        self.audio_to_text = CrossAttention(dim, num_heads, dropout, use_norm=use_norm)
        self.text_to_audio = CrossAttention(dim, num_heads, dropout, use_norm=use_norm)

    def forward(
        self, audio: torch.Tensor, audio_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns both sequences, each knowing the other."""
        return self.audio_to_text(audio, text, text_mask), self.text_to_audio(text, audio, audio_mask)


class OneWayAttention(nn.Module):
    """Only the audio attends to the text (the ablation "cross-attention")."""

    def __init__(self, dim: int, num_heads: int, dropout: float, *, use_norm: bool):
        super().__init__()
        self.audio_to_text = CrossAttention(dim, num_heads, dropout, use_norm=use_norm)

    def forward(
        self, audio: torch.Tensor, audio_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the audio knowing the text, and the text as it came."""
        return self.audio_to_text(audio, text, text_mask), text


class AffinityCoAttention(nn.Module):
    """Both sequences read from one matrix of affinities, without heads or values (the ablation "vanilla")."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_affinity = nn.Linear(dim, dim, bias=False)

    def forward(
        self, audio: torch.Tensor, audio_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns for each audio token a mean of text tokens, and for each text token a mean of audio tokens."""
        affinity = self.to_affinity(audio) @ text.mT / audio.shape[-1] ** 0.5  # (B, T, L)
        text_weights = affinity.masked_fill(~text_mask[:, None], -torch.inf).softmax(dim=2)
        audio_weights = affinity.masked_fill(~audio_mask[:, :, None], -torch.inf).softmax(dim=1)
        return text_weights @ text, audio_weights.mT @ audio


class WhisQModel(ModelMixin, ConfigMixin):
    """Predicts overall quality from the audio tokens, and text alignment from audio and text tokens together.

    Quality looks at the pooled audio alone, so a stretch of it is scored by showing only that stretch: through the
    mask, or for a whole curve at once with `score_frames`.

    Args:
        audio_encoder: Name of the audio encoder, as `whisq.encoders.load_audio_encoder` takes it; "./..." is a folder
            beside the heads.
        text_encoder: Name of the text encoder, as `whisq.encoders.load_text_encoder` takes it, or "./..." likewise.
        audio_hidden_size: Width of the audio tokens, and of everything in here.
        text_hidden_size: Width of the text tokens; they are projected to that of the audio tokens.
        num_attention_heads: Heads of the co-attention.
        head_hidden_sizes: Widths of the hidden layers of both heads.
        coattention_type: How audio and text meet: "sequence" (both attend to each other, the paper's), "vanilla" (one
            matrix of affinities for both directions) or "cross" (the audio attends to the text).
        quality_pool: What the quality head sees of the audio tokens: their "mean", or "mean_std", their standard
            deviation too.
        use_norms: Whether all tokens are normalised on entering, and attention adds to its input and normalises.
        use_products: Whether the alignment head also sees the products of pooled audio and text.
        is_bounded: Whether scores approach 1 and 5 smoothly, or are free in training and clipped in use.
        dropout: Share of activations and attention weights dropped in training.
    """

    @register_to_config
    def __init__(
        self,
        audio_encoder: str = "embedded",
        text_encoder: str = "embedded",
        audio_hidden_size: int = 256,
        text_hidden_size: int = 384,
        num_attention_heads: int = 4,
        head_hidden_sizes: tuple[int, ...] = (256, 64),
        coattention_type: str = "sequence",
        quality_pool: str = "mean_std",
        use_norms: bool = True,
        use_products: bool = True,
        is_bounded: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        if quality_pool not in ("mean", "mean_std"):
            raise ValueError(f'`quality_pool` must be "mean" or "mean_std", got {quality_pool!r}.')
        if audio_hidden_size % num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `audio_hidden_size`, got {num_attention_heads} and "
                f"{audio_hidden_size}."
            )
        dim = audio_hidden_size
        self.text_projection = nn.Linear(text_hidden_size, dim)
        if coattention_type == "sequence":
            self.coattention = SequenceCoAttention(dim, num_attention_heads, dropout, use_norm=use_norms)
        elif coattention_type == "cross":
            self.coattention = OneWayAttention(dim, num_attention_heads, dropout, use_norm=use_norms)
        elif coattention_type == "vanilla":
            self.coattention = AffinityCoAttention(dim)
        else:
            raise ValueError(f'`coattention_type` must be "sequence", "vanilla" or "cross", got {coattention_type!r}.')
        quality_features = 2 * dim if quality_pool == "mean_std" else dim
        alignment_features = 3 * dim if use_products else 2 * dim
        self.quality_head = score_head(quality_features, head_hidden_sizes, dropout)
        self.alignment_head = score_head(alignment_features, head_hidden_sizes, dropout)

    def forward(
        self,
        audio_hidden_states: torch.Tensor,
        audio_mask: torch.Tensor,
        text_hidden_states: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> WhisQOutput:
        """Scores clips, and how they follow their prompts where these are given.

        Args:
            audio_hidden_states: Audio tokens of shape `(batch, audio_tokens, audio_hidden_size)`.
            audio_mask: Shape `(batch, audio_tokens)`, true for real tokens.
            text_hidden_states: Text tokens of shape `(batch, text_tokens, text_hidden_size)`, one text for each clip.
            text_mask: Shape `(batch, text_tokens)`, true for real tokens.
        """
        audio = self._enter(audio_hidden_states, audio_mask, "audio")
        overall_quality = self._to_scores(self.quality_head(self._pool_quality(audio, audio_mask)))
        if text_hidden_states is None:
            return WhisQOutput(overall_quality, None, audio, None)

        text = self.text_projection(self._enter(text_hidden_states, text_mask, "text"))  # (B, L, D)
        attended_audio, attended_text = self.coattention(audio, audio_mask, text, text_mask)
        pooled_audio = masked_mean(attended_audio, audio_mask)  # (B, D)
        pooled_text = masked_mean(attended_text, text_mask)
        features = [pooled_audio, pooled_text]
        if self.config.use_products:
            features.append(pooled_audio * pooled_text)
        text_alignment = self._to_scores(self.alignment_head(torch.cat(features, dim=-1)))
        return WhisQOutput(overall_quality, text_alignment, audio, text)

    def encoder_name(self, kind: str) -> str:
        """Returns the name of the "audio" or "text" encoder, found where the model was loaded from if it lies there."""
        name = self.config[f"{kind}_encoder"]
        return str(Path(self.config["_name_or_path"]) / name) if name.startswith("./") else name

    def score_frames(
        self, audio_hidden_states: torch.Tensor, audio_mask: torch.Tensor, *, window: int, hop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores the quality over time, from tokens that are already there.

        Frame `i` is the stretch from token `i * hop` to `(i + 1) * hop`; its score is that of the `window` tokens
        around its middle, or of those of them that lie inside the clip.

        Args:
            audio_hidden_states: Audio tokens of shape `(batch, audio_tokens, audio_hidden_size)`.
            audio_mask: Shape `(batch, audio_tokens)`, true for real tokens; padding comes last.
            window: Tokens that a score is made of.
            hop: Tokens from one frame to the next, at most `window`.

        Returns:
            Scores `(batch, frames)`, and which of the frames hold real tokens, in the same shape.
        """
        if not 1 <= hop <= window:
            raise ValueError(f"`hop` must be at least 1 and at most `window`, got {hop} and window={window}.")
        audio = self._enter(audio_hidden_states, audio_mask, "audio")
        scores = self._to_scores(self.quality_head(self._pool_windows(audio, audio_mask, window, hop)))
        return scores, audio_mask[:, ::hop]

    def _enter(self, hidden_states: torch.Tensor, mask: torch.Tensor | None, name: str) -> torch.Tensor:
        """Checks the tokens of one encoder, clears what is padding, and normalises them if the model does."""
        width = self.config[f"{name}_hidden_size"]
        if hidden_states.ndim != 3 or hidden_states.shape[2] != width:
            raise ValueError(
                f"`{name}_hidden_states` must have shape (batch, tokens, {width}) for the encoder "
                f"{self.config[f'{name}_encoder']!r}, got {tuple(hidden_states.shape)}."
            )
        if mask is None or mask.shape != hidden_states.shape[:2] or mask.dtype != torch.bool:
            got = "none" if mask is None else f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(
                f"`{name}_mask` must be boolean of shape {tuple(hidden_states.shape[:2])}, true for real tokens, "
                f"got {got}."
            )
        if not mask.any(dim=1).all():
            raise ValueError(f"`{name}_mask` must leave every clip at least one real token, got one without.")
        hidden_states = hidden_states.to(self.dtype).masked_fill(~mask[:, :, None], 0.0)
        return F.layer_norm(hidden_states, (width,)) if self.config.use_norms else hidden_states

    def _pool_quality(self, audio: torch.Tensor, audio_mask: torch.Tensor) -> torch.Tensor:
        """Pools audio tokens into what the quality head sees, `(batch, quality_features)`."""
        mean = masked_mean(audio, audio_mask)
        if self.config.quality_pool == "mean":
            return mean
        return torch.cat([mean, deviation(masked_mean((audio - mean[:, None]).square(), audio_mask))], dim=-1)

    def _pool_windows(self, audio: torch.Tensor, audio_mask: torch.Tensor, window: int, hop: int) -> torch.Tensor:
        """Pools the windows around all frames, `(batch, frames, quality_features)`."""
        center = masked_mean(audio, audio_mask)[:, None]  # of the clip: keeps the squares below small, and so exact
        audio = (audio - center).masked_fill(~audio_mask[:, :, None], 0.0)
        mean = window_sums(audio, window, hop)  # (B, W, D)
        counts = window_sums(audio_mask[:, :, None].to(audio.dtype), window, hop).clamp(min=1)
        mean = mean / counts
        if self.config.quality_pool == "mean":
            return mean + center
        variance = window_sums(audio.square(), window, hop) / counts - mean.square()
        return torch.cat([mean + center, deviation(variance)], dim=-1)

    def _to_scores(self, head_output: torch.Tensor) -> torch.Tensor:
        """Maps what a head puts out, `(…, 1)`, to scores around the middle of the scale, `(…)`."""
        middle, reach = (HIGHEST_SCORE + LOWEST_SCORE) / 2, (HIGHEST_SCORE - LOWEST_SCORE) / 2
        head_output = head_output.squeeze(-1).float()
        if self.config.is_bounded:
            return middle + reach * head_output.tanh()
        scores = middle + head_output
        return scores if self.training else scores.clamp(LOWEST_SCORE, HIGHEST_SCORE)


def score_head(num_features: int, hidden_sizes: tuple[int, ...], dropout: float) -> nn.Sequential:
    """A multilayer perceptron from pooled features to one number."""
    layers = []
    for hidden_size in hidden_sizes:
        layers += [nn.Linear(num_features, hidden_size), nn.GELU(), nn.Dropout(dropout)]
        num_features = hidden_size
    return nn.Sequential(*layers, nn.Linear(num_features, 1))


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Averages the real tokens: `(batch, tokens, dim)` and `(batch, tokens)` to `(batch, dim)`."""
    total = hidden_states.masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True)


def deviation(variance: torch.Tensor) -> torch.Tensor:
    """Square root with a floor, where its slope would be infinite."""
    return variance.clamp(min=1e-6).sqrt()


def window_sums(tokens: torch.Tensor, window: int, hop: int) -> torch.Tensor:
    """Sums `window` tokens around the middle of every hop: `(batch, tokens, dim)` to `(batch, frames, dim)`."""
    num_frames = -(-tokens.shape[1] // hop)
    before = (window - hop) // 2
    after = (num_frames - 1) * hop + window - before - tokens.shape[1]
    padded = F.pad(tokens.mT, (before, max(after, 0)))
    return F.avg_pool1d(padded, window, hop)[:, :, :num_frames].mT * window
