"""Schedulers under short names, each made to fit a model's own noise schedule, and the paper's settings."""

from __future__ import annotations

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


def make_scheduler(name: str, current: SchedulerMixin) -> SchedulerMixin:
    """Builds the scheduler called `name` with the noise schedule and prediction type of the `current` one."""
    if name not in SAMPLERS:
        raise ValueError(f"`name` must be one of {', '.join(SAMPLERS)}, got {name!r}.")
    config = current.config
    if not (isinstance(current, FlowMatchEulerDiscreteScheduler) or config.get("use_flow_sigmas")):
        return SAMPLERS[name].from_config(config)
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
        clip_sample=False,
        thresholding=False,
    )
