"""The diffusion loss: noise in, prediction out, weighted by min-SNR, through the full and the masked network (MDT).

Shapes: B batch, C latent channels, T latent frames, F latent bins, N patches, K patches kept.
"""

from dataclasses import dataclass, replace

import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from qamdt.config import LossConfig
from qamdt.dataset import Batch


@dataclass(frozen=True)
class DiffusionDraws:
    """What is random in one step.

    Args:
        timesteps: Of shape `(batch,)`.
        noise: Shaped like the latents.
        mask_noise: Uniform, of shape `(batch, patches)`; orders the patches for hiding.
        mask_ratio: Share of the patches to hide, one for the batch.
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    mask_noise: torch.Tensor
    mask_ratio: float


def draw(batch: Batch, num_patches: int, config: LossConfig) -> DiffusionDraws:
    """Draws timesteps (uniform), noise and mask noise, each sample's from its own seed.

    So a sample meets the same noise whichever batch, rank or resumed run it lands in. The ratio hangs on the batch.
    """
    timesteps, noises, mask_noises = [], [], []
    for seed in batch.seeds:
        generator = torch.Generator().manual_seed(seed)
        timesteps.append(torch.randint(config.num_train_timesteps, (), generator=generator))
        noises.append(torch.randn(batch.latents.shape[1:], generator=generator))
        mask_noises.append(torch.rand(num_patches, generator=generator))
    ratio = torch.rand((), generator=torch.Generator().manual_seed(sum(batch.seeds) % 2**62)).item()
    device = batch.latents.device
    return DiffusionDraws(
        timesteps=torch.stack(timesteps).to(device),
        noise=torch.stack(noises).to(device),
        mask_noise=torch.stack(mask_noises).to(device),
        mask_ratio=config.min_mask_ratio + ratio * (config.max_mask_ratio - config.min_mask_ratio),
    )


def sample_keep_ids(mask_noise: torch.Tensor, mask_ratio: float) -> torch.Tensor:
    """Chooses the patches that stay visible; the quality token is not counted and always kept.

    Args:
        mask_noise: Uniform noise `(batch, patches)`.
        mask_ratio: Share of the patches to hide.

    Returns:
        Indices of the kept patches `(batch, kept)`, in random order.
    """
    num_kept = max(1, int(mask_noise.shape[1] * (1 - mask_ratio)))
    return mask_noise.argsort(dim=1)[:, :num_kept]  # (B, K)


class NoiseSchedule(nn.Module):
    """The forward diffusion: `scaled_linear` variances, as the schedulers of inference have them.

    Args:
        config: Number of steps and the ends of the schedule.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0), persistent=False)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the latents at `timesteps` of the diffusion."""
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(
        self, prediction_type: str, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Returns what the network should predict."""
        if prediction_type == "epsilon":
            return noise
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def weights(self, prediction_type: str, min_snr_gamma: float | None, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the min-SNR weight of each sample `(batch,)` (Hang et al. 2023, https://arxiv.org/abs/2303.09556)."""
        if min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        alpha = self.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        return snr.clamp(max=min_snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def diffusion_loss(
    transformer: nn.Module,
    batch: Batch,
    draws: DiffusionDraws,
    schedule: NoiseSchedule,
    config: LossConfig,
    *,
    is_masked: bool,
) -> torch.Tensor:
    """Returns the loss of one pass, a weighted mean of squared errors over the whole latents.

    Args:
        transformer: The network, possibly wrapped for distributed training.
        batch: Samples.
        draws: Their timesteps, noise and mask noise.
        schedule: The forward diffusion.
        config: Prediction type and weighting.
        is_masked: Whether patches are hidden from the encoder blocks; the loss covers hidden patches as well.
    """
    noisy_latents = schedule.add_noise(batch.latents, draws.noise, draws.timesteps)
    model_output = transformer(
        hidden_states=noisy_latents,
        timestep=draws.timesteps,
        encoder_hidden_states=batch.encoder_hidden_states,
        encoder_attention_mask=batch.encoder_attention_mask,
        quality_level=batch.quality_level,
        frame_quality=batch.frame_quality,
        global_quality=batch.global_quality,
        keep_ids=sample_keep_ids(draws.mask_noise, draws.mask_ratio) if is_masked else None,
        return_dict=False,
    )[0]  # (B, C, T, F)
    target = schedule.target(config.prediction_type, batch.latents, draws.noise, draws.timesteps)
    errors = (model_output.float() - target).square().mean(dim=(1, 2, 3))  # (B,)
    return (errors * schedule.weights(config.prediction_type, config.min_snr_gamma, draws.timesteps)).mean()


def select_conditions(batch: Batch, model_config: FrozenDict) -> Batch:
    """Returns the batch without the levels of quality that a model of this config does not take."""
    unknown = {
        name: None
        for name, option in (
            ("quality_level", "use_quality_token"),
            ("frame_quality", "use_frame_quality"),
            ("global_quality", "use_global_quality"),
        )
        if not model_config[option]
    }
    return replace(batch, **unknown)


def passes_of_step(config: LossConfig, step: int) -> list[bool]:
    """Returns, for each pass of a step, whether it is masked."""
    if config.passes == "alternate":
        return [step % 2 == 1]
    return {"full": [False], "masked": [True], "both": [False, True]}[config.passes]
