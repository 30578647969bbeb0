"""What enters the QA-MDT transformer: patches, positions, quality curves and pooled text.

Shapes: B batch, C latent channels, T latent frames (time), F latent bins (frequency), N patches, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


NUM_QUALITY_LEVELS = 6  # level 0 says "unknown", levels 1 to 5 are worst to best


class PatchEmbed(nn.Module):
    """Cuts latents into patches, which may overlap, and puts such patches together again.

    Latents that the patches do not tile exactly are padded with zeros on both sides, half and half, the odd row or
    column at the end; `unpatchify` cuts the padding off again and averages where patches overlap.

    Args:
        in_channels: Number of latent channels.
        dim: Width of the token stream.
        patch_size: Latent frames and latent bins of a patch.
        overlap: Latent frames and latent bins that neighbouring patches share.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int], overlap: tuple[int, int]):
        super().__init__()
        if any(not 0 <= shared < size for size, shared in zip(patch_size, overlap, strict=True)):
            raise ValueError(
                f"`patch_overlap` must be at least 0 and smaller than `patch_size` in both directions, got"
                f" patch_overlap={tuple(overlap)} and patch_size={tuple(patch_size)}."
            )
        self.patch_size = tuple(patch_size)
        self.stride = tuple(size - shared for size, shared in zip(patch_size, overlap, strict=True))
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=self.patch_size, stride=self.stride)

    def grid_size(self, sample_size: tuple[int, int]) -> tuple[int, int]:
        """Counts the patches along time and frequency that cover latents of `sample_size` frames and bins."""
        return tuple(
            max(0, math.ceil((size - patch) / stride)) + 1
            for size, patch, stride in zip(sample_size, self.patch_size, self.stride, strict=True)
        )

    def padding(self, sample_size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows added before and after the latents, for time and for frequency."""
        totals = (
            (grid - 1) * stride + patch - size
            for grid, stride, patch, size in zip(
                self.grid_size(sample_size), self.stride, self.patch_size, sample_size, strict=True
            )
        )
        return tuple((total // 2, total - total // 2) for total in totals)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        (top, bottom), (left, right) = self.padding(latents.shape[2:])
        if top or bottom or left or right:
            latents = F.pad(latents, (left, right, top, bottom))
        return self.proj(latents).flatten(2).transpose(1, 2)  # (B, N, D), time first

    def unpatchify(self, patches: torch.Tensor, sample_size: tuple[int, int]) -> torch.Tensor:
        """Lays patches of shape `(batch, patches, patch_frames * patch_bins * channels)` out as latents."""
        (top, bottom), (left, right) = self.padding(sample_size)
        padded_size = (sample_size[0] + top + bottom, sample_size[1] + left + right)
        patches = patches.unflatten(-1, (math.prod(self.patch_size), -1))  # (B, N, P, C)
        columns = patches.permute(0, 3, 2, 1).flatten(1, 2)  # (B, C * P, N)
        latents = F.fold(columns, padded_size, kernel_size=self.patch_size, stride=self.stride)
        if self.stride != self.patch_size:
            ones = columns.new_ones(1, math.prod(self.patch_size), columns.shape[-1])
            latents = latents / F.fold(ones, padded_size, kernel_size=self.patch_size, stride=self.stride)
        return latents[:, :, top : padded_size[0] - bottom, left : padded_size[1] - right]


def sinusoidal_positions(
    grid_size: tuple[int, int],
    native_grid_size: tuple[int, int],
    base_size: int,
    dim: int,
    interpolation_scale: float,
    device: torch.device,
) -> torch.Tensor:
    """Fixed two-dimensional positions of a grid of patches, of shape `(patches, dim)`.

    The first half of the features tells the frequency, the second half the time. A patch keeps its coordinates when
    more or fewer patches are asked for than the network was built for, so any length has positions.

    Args:
        grid_size: Patches along time and frequency that are asked for.
        native_grid_size: Patches along time and frequency that span `base_size` units.
        base_size: Extent of the native grid, the same in both directions.
        dim: Number of features, a multiple of 4.
        interpolation_scale: Divides all coordinates.
        device: Where to compute them.
    """
    # float32 angles would be off by 1e-5 at the end of ten seconds; MPS knows no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    exponents = torch.arange(dim // 4, dtype=dtype, device=device) / (dim // 4)
    features = []
    for size, native_size in zip(grid_size, native_grid_size, strict=True):
        coordinates = torch.arange(size, dtype=torch.float32, device=device) / (native_size / base_size)
        angles = torch.outer(coordinates.to(dtype) / interpolation_scale, 10_000.0**-exponents)
        features.append(torch.cat([angles.sin(), angles.cos()], dim=-1).float())  # (size, dim / 2)
    time, frequency = features
    return torch.cat(
        [
            frequency[None].expand(grid_size[0], -1, -1),
            time[:, None].expand(-1, grid_size[1], -1),
        ],
        dim=-1,
    ).flatten(0, 1)


def resample_positions(
    positions: torch.Tensor, native_grid_size: tuple[int, int], grid_size: tuple[int, int]
) -> torch.Tensor:
    """Stretches learned positions of shape `(1, patches, dim)` linearly from one grid of patches to another."""
    if grid_size == native_grid_size:
        return positions
    image = positions.unflatten(1, native_grid_size).permute(0, 3, 1, 2)  # (1, D, time, frequency)
    image = F.interpolate(image, size=grid_size, mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2)


class FrameQualityEmbedding(nn.Module):
    """Embeds a quality curve: one vector for each time column of patches.

    A level between two whole ones is embedded between their rows. Curves of any frame rate are resampled *after* that,
    so that a known and an unknown frame mix to half known, not to some level in between.

    Args:
        dim: Width of the token stream.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(NUM_QUALITY_LEVELS, dim)

    def forward(self, frame_quality: torch.Tensor, num_columns: int) -> torch.Tensor:
        levels = torch.arange(NUM_QUALITY_LEVELS, device=frame_quality.device)
        weights = (1 - (frame_quality.float().unsqueeze(1) - levels.unsqueeze(-1)).abs()).clamp(min=0)  # (B, 6, T')
        if weights.shape[-1] > num_columns:
            weights = F.adaptive_avg_pool1d(weights, num_columns)
        elif weights.shape[-1] < num_columns:
            weights = F.interpolate(weights, size=num_columns, mode="linear", align_corners=False)
        table = self.embedding.weight
        return weights.transpose(1, 2).to(table.dtype) @ table  # (B, columns, D)


class MusicEmbedding(nn.Module):
    """Embeds what is played (`qamdt.music.music_curve`): one vector for each time column of patches.

    The last layer starts at zero, so a network that learns to hear it starts as it was.

    Args:
        num_features: Numbers that describe a frame.
        dim: Width of the token stream.
    """

    def __init__(self, num_features: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(num_features, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, music: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Maps features `(batch, frames, num_features)` at any frame rate to `(batch, columns, dim)`."""
        hidden_states = self.linear_2(F.silu(self.linear_1(music.to(self.linear_1.weight.dtype))))
        if hidden_states.shape[1] == num_columns:
            return hidden_states
        hidden_states = hidden_states.transpose(1, 2)
        if hidden_states.shape[2] > num_columns:
            return F.adaptive_avg_pool1d(hidden_states, num_columns).transpose(1, 2)
        return F.interpolate(hidden_states, size=num_columns, mode="linear", align_corners=False).transpose(1, 2)


def known_or_unknown(level: torch.Tensor | None, timestep: torch.Tensor) -> torch.Tensor:
    """Quality levels of shape `(batch,)`, all of them 0 if nothing is known."""
    return torch.zeros_like(timestep, dtype=torch.long) if level is None else level


def masked_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the real tokens of each text, of shape `(batch, dim)`."""
    if mask is None:
        return states.mean(dim=1)
    weights = mask.to(states.dtype).unsqueeze(-1)  # (B, L, 1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
