"""The small audio encoder of the embedded scorer and of the embedded CLAP: convolutions only, one token per 80 ms.

Convolutions see a bounded stretch of time, so a token speaks for its own second and a half, and quality that changes
inside a clip can be told apart. Everything beyond a clip's end is set to zero before every convolution: padding a
clip, or batching it with longer ones, changes none of its tokens.

Shapes: B batch, N mel frames, M mel bins, T tokens (N // 8), C channels, D width.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from qamdt.audio import SAMPLING_RATE
from whisq.audio import LogMel


class MaskedStage(nn.Module):
    """Halves time and frequency: masked convolution, layer norm over the channels, GELU.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Width of the kernel in frames and bins.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, N, M)` and the mask `(B, N)` of real frames to `(B, C', ceil(N / 2), ceil(M / 2))`."""
        features = self.conv(features * frame_mask[:, None, :, None])
        features = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return nn.functional.gelu(features)


class MaskedConvNeXtBlock(nn.Module):
    """Residual block: masked depthwise convolution over time, then a pointwise feed-forward network.

    Args:
        dim: Width of the tokens.
        kernel_size: Tokens that the convolution spans.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 3 * dim)
        self.contract = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps tokens `(B, T, D)` with the mask `(B, T)` of real tokens to the same shape."""
        masked = (hidden_states * mask[:, :, None]).transpose(1, 2)
        branch = self.norm(self.depthwise(masked).transpose(1, 2))
        branch = self.contract(nn.functional.gelu(self.expand(branch)))
        return hidden_states + self.scale * branch


class AudioTower(ModelMixin, ConfigMixin):
    """Turns 16 kHz waveforms into one token of width `hidden_size` per 80 ms.

    Args:
        num_mel_bins: Mel bands of the spectrogram.
        channels: Channels of the three stages that halve time and frequency.
        hidden_size: Width D of the tokens.
        num_layers: Number of blocks over time; each adds three tokens of view on both sides.
        mel_mean: Mean of the log-mel values in training data, subtracted first.
        mel_std: Their standard deviation, divided by.
        name: What label files call this encoder.
    """

    frames_per_s = SAMPLING_RATE / 160 / 8  # tokens a second

    @register_to_config
    def __init__(
        self,
        num_mel_bins: int = 64,
        channels: tuple[int, int, int] = (32, 64, 128),
        hidden_size: int = 256,
        num_layers: int = 6,
        mel_mean: float = -5.5,
        mel_std: float = 3.0,
        name: str = "audio-tower",
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.name = name
        self.log_mel = LogMel(num_mel_bins)
        widths = (1, *channels)
        self.stages = nn.ModuleList(
            MaskedStage(widths[i], widths[i + 1], kernel_size=5 if i == 0 else 3) for i in range(3)
        )
        self.embed = nn.Linear(channels[-1] * (num_mel_bins // 8), hidden_size)
        self.blocks = nn.ModuleList(MaskedConvNeXtBlock(hidden_size, kernel_size=7) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(hidden_size)

    def forward(self, mel_spectrogram: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes log-mel spectrograms.

        Args:
            mel_spectrogram: Log-mel of shape `(B, N, M)`, N a multiple of 8.
            frame_mask: `(B, N)` bool, `True` for real frames.

        Returns:
            Hidden states `(B, T, D)`, zero where there is no clip, and the mask `(B, T)` of real tokens. A token is
            real when all its eight frames are; of a clip shorter than that the first token is.
        """
        mask = frame_mask.unflatten(1, (-1, 8)).all(dim=2)  # (B, T)
        mask[:, 0] = True
        features = ((mel_spectrogram - self.config.mel_mean) / self.config.mel_std)[:, None]  # (B, 1, N, M)
        features = features.to(self.embed.weight.dtype)
        for stage in self.stages:
            features = stage(features, frame_mask)
            frame_mask = frame_mask[:, ::2]
        hidden_states = self.embed(features.permute(0, 2, 1, 3).flatten(2))  # (B, T, D)
        for block in self.blocks:
            hidden_states = block(hidden_states, mask)
        return self.final_norm(hidden_states) * mask[:, :, None], mask

    def encode(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes waveforms `(batch, samples)` of 16 kHz.

        Args:
            waveforms: Right-padded waveforms.
            lengths: Real samples of each `(batch,)`; all of them when `None`.

        Returns:
            Hidden states `(B, T, D)` and the mask `(B, T)` of real tokens.
        """
        return self(*self.mel_with_mask(waveforms, lengths))

    def mel_with_mask(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel `(B, N, M)` of waveforms `(batch, samples)`, N rounded up to a multiple of 8, and its mask `(B, N)`."""
        hop_length = self.log_mel.hop_length
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        positions = torch.arange(waveforms.shape[1], device=waveforms.device)
        waveforms = waveforms * (positions < lengths[:, None])  # what lies behind a clip's end is not heard
        multiple = 8 * hop_length
        waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % multiple))
        mel_spectrogram = self.log_mel(waveforms)
        frames = torch.arange(mel_spectrogram.shape[1], device=waveforms.device)
        return mel_spectrogram, frames < (lengths // hop_length).clamp(min=1)[:, None]
