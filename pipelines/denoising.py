"""The denoising loop, from noise (or noisy latents) to clean latents, the same for every pipeline.

Shapes: B batch, C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers import SchedulerMixin

from pipelines.guidance import Guidance
from pipelines.sections import Told


Predict = Callable[[torch.Tensor, torch.Tensor, Sequence[Told]], Sequence[torch.Tensor]]
Change = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]


def denoise(
    predict: Predict,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    timesteps: Iterable[torch.Tensor],
    guidance: Guidance,
    *,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    constrain: Change | None = None,
    callback: Change | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """Takes noise out of latents, step by step.

    Args:
        predict: Runs the network: `predict(model_input, timestep, branches)` with latents `(B, C, T, F)` of the size
            that the network knows returns an output of that shape for each of the branches.
        scheduler: Makes the steps; its timesteps are set.
        latents: Latents `(B, C, T, F)` as the scheduler keeps them at the first timestep.
        timesteps: All of the scheduler's timesteps or the last of them, perhaps behind a progress bar.
        guidance: What the network is told, and how its outputs combine; counts the steps from 0.
        eta: Share of fresh noise in every step, for schedulers that know it.
        generator: Source of fresh noise, for schedulers that draw some.
        constrain: Called as `constrain(latents, step, timestep)` after every step; what it returns goes on. The
            latents are then at the *next* noise level.
        callback: Called in the same way, after `constrain`.
        is_interrupted: Asked before every step; once it says true, the latents are returned as they are.
    """
    arguments = {"eta": eta, "generator": generator}
    arguments = {name: value for name, value in arguments.items() if takes_in_step(scheduler, name)}
    for step, timestep in enumerate(timesteps):
        if is_interrupted():
            break
        outputs = predict(scale_model_input(scheduler, latents, timestep), timestep, guidance.branches(step))
        model_output = guidance.combine(outputs)
        latents = scheduler.step(model_output, timestep, latents, **arguments, return_dict=False)[0]
        for change in (constrain, callback):
            if change is not None:
                latents = change(latents, step, timestep)
    return latents


def takes_in_step(scheduler: SchedulerMixin, argument: str) -> bool:
    """Whether a scheduler knows an argument of `step` that only some schedulers have."""
    return argument in inspect.signature(scheduler.step).parameters


def scale_model_input(scheduler: SchedulerMixin, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Brings latents to the size that the network knows, where the scheduler keeps them at another."""
    return scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents


def add_noise(
    scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Brings clean latents to the noise level of a timestep, as the scheduler keeps them there.

    Args:
        scheduler: Its timesteps are set. One that counts its steps must have reached this timestep.
        latents: Clean latents `(B, C, T, F)`.
        noise: Noise of variance one, of the same shape.
        timestep: One of the scheduler's timesteps, a scalar.
    """
    timesteps = timestep[None]
    if hasattr(scheduler, "scale_noise"):  # schedulers of flows
        return scheduler.scale_noise(latents, timesteps, noise)
    return scheduler.add_noise(latents, noise, timesteps)
