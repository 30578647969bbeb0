"""The diffusion loss: noise in, prediction out, weighted by min-SNR, through the full and the masked network (MDT).

Shapes: B batch, C latent channels, T latent frames, F latent bins, N patches, K patches kept.
"""

from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from torch import nn

from qamdt.training.config import LossConfig
from qamdt.training.dataset import Batch


@dataclass(frozen=True)
class DiffusionDraws:
    """What is random in one step.

    Args:
        timesteps: Of shape `(batch,)`; whole numbers for a diffusion, fractions for a flow.
        noise: Shaped like the latents.
        mask_noise: Uniform, of shape `(batch, patches)`; orders the patches for hiding.
        mask_ratio: Share of the patches to hide, one for the update.
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    mask_noise: torch.Tensor
    mask_ratio: float


def draw(batch: Batch, num_patches: int, config: LossConfig, *, mask_seed: int) -> DiffusionDraws:
    """Draws timesteps, noise and mask noise, each sample's from its own seed.

    So a sample meets the same noise whichever batch, rank or resumed run it lands in.

    Args:
        batch: Samples.
        num_patches: Patches of a sample.
        config: How timesteps and the share of hidden patches are drawn.
        mask_seed: What that share hangs on; the same for all batches of an update, on all ranks.
    """
    timesteps, noises, mask_noises = [], [], []
    for seed in batch.seeds:
        generator = torch.Generator().manual_seed(seed)
        timesteps.append(_draw_timestep(config, generator))
        noises.append(torch.randn(batch.latents.shape[1:], generator=generator))
        mask_noises.append(torch.rand(num_patches, generator=generator))
    ratio = torch.rand((), generator=torch.Generator().manual_seed(mask_seed)).item()
    device = batch.latents.device
    return DiffusionDraws(
        timesteps=torch.stack(timesteps).to(device),
        noise=torch.stack(noises).to(device),
        mask_noise=torch.stack(mask_noises).to(device),
        mask_ratio=config.min_mask_ratio + ratio * (config.max_mask_ratio - config.min_mask_ratio),
    )


def _draw_timestep(config: LossConfig, generator: torch.Generator) -> torch.Tensor:
    if config.timestep_sampling == "uniform" and config.prediction_type != "flow_prediction":
        return torch.randint(config.num_train_timesteps, (), generator=generator)
    is_uniform = config.timestep_sampling == "uniform"
    place = torch.rand((), generator=generator) if is_uniform else torch.randn((), generator=generator).sigmoid()
    if config.prediction_type != "flow_prediction":
        return (place * config.num_train_timesteps).long().clamp(max=config.num_train_timesteps - 1)
    shifted = config.flow_shift * place / (1 + (config.flow_shift - 1) * place)
    return shifted * config.num_train_timesteps


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
    """The forward process, as the schedulers of inference have it.

    Noisy latents are `signal * latents + sigma * noise`: for a diffusion with `scaled_linear` variances on a quarter
    circle, for a flow on the straight line `signal = 1 - sigma`.

    Args:
        config: What the network predicts, the number of steps and the ends of the schedule.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.prediction_type = config.prediction_type
        self.num_train_timesteps = config.num_train_timesteps
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0), persistent=False)

    def levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the shares of signal and of noise at `timesteps`, each `(batch,)`."""
        if self.prediction_type == "flow_prediction":
            sigma = timesteps / self.num_train_timesteps
            return 1 - sigma, sigma
        alpha = self.alphas_cumprod[timesteps]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the latents at `timesteps`."""
        signal, sigma = (level.view(-1, 1, 1, 1) for level in self.levels(timesteps))
        return signal * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns what the network should predict."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "flow_prediction":
            return noise - latents
        signal, sigma = (level.view(-1, 1, 1, 1) for level in self.levels(timesteps))
        return signal * noise - sigma * latents

    def weights(self, min_snr_gamma: float | None, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the min-SNR weight of each sample `(batch,)` (Hang et al. 2023, https://arxiv.org/abs/2303.09556).

        The weight of an error in the clean latents is the signal-to-noise ratio, capped; what that error is in the
        prediction depends on what is predicted.
        """
        if min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        signal, sigma = self.levels(timesteps)
        snr = (signal / sigma).square()
        # An error of one in the latents is an error of so much, squared, in the prediction.
        error = {"epsilon": snr, "v_prediction": snr + 1, "flow_prediction": 1 / sigma.square()}[self.prediction_type]
        return snr.clamp(max=min_snr_gamma) / error


def make_scheduler(config: LossConfig) -> SchedulerMixin:
    """Returns a scheduler of diffusers that samples what was trained with these settings."""
    if config.prediction_type == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=config.flow_shift)
    return DPMSolverMultistepScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=config.prediction_type,
    )


def diffusion_loss(
    transformer: nn.Module,
    batch: Batch,
    draws: DiffusionDraws,
    schedule: NoiseSchedule,
    config: LossConfig,
    *,
    model_config: FrozenDict,
    is_masked: bool,
) -> torch.Tensor:
    """Returns the loss of one pass, a weighted mean of squared errors over the whole latents.

    Args:
        transformer: The network, possibly wrapped for distributed training.
        batch: Samples.
        draws: Their timesteps, noise and mask noise.
        schedule: The forward diffusion.
        config: Prediction type and weighting.
        model_config: The network's own config, which says what it can be told.
        is_masked: Whether patches are hidden from the encoder blocks; the loss covers hidden patches as well.
    """
    noisy_latents = schedule.add_noise(batch.latents, draws.noise, draws.timesteps)
    model_output = transformer(
        hidden_states=noisy_latents,
        timestep=draws.timesteps,
        **batch.conditions.for_model(model_config),
        keep_ids=sample_keep_ids(draws.mask_noise, draws.mask_ratio) if is_masked else None,
        return_dict=False,
    )[0]  # (B, C, T, F)
    target = schedule.target(batch.latents, draws.noise, draws.timesteps)
    errors = (model_output.float() - target).square().mean(dim=(1, 2, 3))  # (B,)
    return (errors * schedule.weights(config.min_snr_gamma, draws.timesteps)).mean()


def passes_of_step(config: LossConfig, step: int) -> list[bool]:
    """Returns, for each pass of a step, whether it is masked."""
    if config.passes == "alternate":
        return [step % 2 == 1]
    return {"full": [False], "masked": [True], "both": [False, True]}[config.passes]
