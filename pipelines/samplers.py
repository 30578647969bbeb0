"""Schedulers under short names, each made to fit a model's own noise schedule, and the paper's settings."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)


SAMPLERS = {
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
}

# The same for a network that was trained as a flow, with what makes each of them follow one.
FLOW_SAMPLERS = {
    "dpm++": (DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
}

# How the published QA-MDT generates, as arguments of a call; its scheduler is `paper_scheduler`.
PAPER_SETTINGS = {
    "num_inference_steps": 200,
    "guidance_scale": 3.5,
    "quality_guidance_scale": None,
    "eta": 1.0,
    "negative_prompt": "",
    "negative_quality": "medium",
}

# Denoising steps unless others are asked for. From noise, 12 make as good a clip as 25 (docs/speed.md); where a recording is
# changed a part of them is run, and `strength` can choose between as many degrees.
NUM_STEPS = 12
NUM_STEPS_OF_CHANGE = 25

# Some schedulers take latents for pictures unless told otherwise, and cut them off at one.
LATENT_SETTINGS = {"clip_sample": False, "thresholding": False}
_NOISE_SETTINGS = (
    "num_train_timesteps",
    "prediction_type",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "snr_shift_scale",
)


def note_latent_settings(scheduler: SchedulerMixin) -> None:
    """Notes in a scheduler's config what it does not know itself, for those that `from_config` makes from it."""
    if "beta_schedule" in scheduler.config:
        unknown = {name: value for name, value in LATENT_SETTINGS.items() if name not in scheduler.config}
        scheduler.register_to_config(**unknown)


def noise_settings(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What a scheduler says of the noise that its network was trained with: how much there is, what is predicted.

    `from_config` keeps settings that a class does not know, so that they are not lost; they say nothing about what it does.
    """
    known = inspect.signature(type(scheduler).__init__).parameters
    config = {name: value for name, value in scheduler.config.items() if name in known}
    if _follows_flow(scheduler):
        flow = {"prediction_type": config.get("prediction_type", "flow_prediction")}
        return flow | {"num_train_timesteps": config.get("num_train_timesteps")}
    return {name: config[name] for name in _NOISE_SETTINGS if config.get(name) is not None}


def check_scheduler(scheduler: SchedulerMixin, trained: dict[str, Any]) -> None:
    """Refuses a scheduler that would play noise: one made for another kind of network, or for pictures.

    Args:
        scheduler: The scheduler of a pipeline.
        trained: `noise_settings` of the scheduler that the network came with.

    Raises:
        ValueError: It does not fit.
    """
    name = type(scheduler).__name__
    remedy = f"`{name}.from_config(pipe.scheduler.config)` of the model's own scheduler"
    if not isinstance(scheduler, SchedulerMixin):
        raise ValueError(f"`scheduler` must be a scheduler of diffusers, got {scheduler!r}.")
    found = noise_settings(scheduler)
    if found != trained:
        names = [name for name in found | trained if found.get(name) != trained.get(name)]
        raise ValueError(
            f"`scheduler` must be made for noise as in the network's training, "
            f"{ {name: trained.get(name) for name in names} }, got {name} with "
            f"{ {name: found.get(name) for name in names} }. Most schedulers fit when made by {remedy}; those for flows "
            "and for EDM fit networks of their own kind alone."
        )
    if clipping := [name for name in LATENT_SETTINGS if scheduler.config.get(name)]:
        raise ValueError(
            f"`scheduler` must leave latents as they are, got {name} with {clipping[0]}=True, which is for pictures; "
            f"make it by {remedy}."
        )


def _follows_flow(scheduler: SchedulerMixin) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def make_scheduler(name: str, current: SchedulerMixin) -> SchedulerMixin:
    """Builds the scheduler called `name` with the noise schedule and prediction type of the `current` one."""
    if name not in SAMPLERS:
        raise ValueError(f"`name` must be one of {', '.join(SAMPLERS)}, got {name!r}.")
    config = current.config
    if not _follows_flow(current):
        return SAMPLERS[name].from_config({**config, **LATENT_SETTINGS})
    if name not in FLOW_SAMPLERS:
        raise ValueError(
            f"`name` must be one of {', '.join(FLOW_SAMPLERS)} for a model that was trained as a flow, got {name!r}."
        )
    scheduler_class, settings = FLOW_SAMPLERS[name]
    shift = config.get("shift", config.get("flow_shift", 1.0))
    return scheduler_class.from_config(config, shift=shift, flow_shift=shift, **settings)


def paper_scheduler(current: SchedulerMixin) -> DDIMScheduler:
    """Builds the DDIM of the published QA-MDT with the noise schedule and prediction type of the `current` scheduler.

    It takes timesteps 1, 6, …, 996 for 200 steps, ends at the first noise level, and never clips.
    """
    return DDIMScheduler.from_config(
        current.config,
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        **LATENT_SETTINGS,
    )
