"""The published sampler on the published network at tiny size: the same noise gives the same trajectory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.samplers import PAPER_SETTINGS, paper_scheduler
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.published.convert import convert_transformer_state_dict, transformer_config_from_original
from qamdt.quality import PUBLISHED_QUALITY_STATS


GOLDEN = Path(__file__).parent / "golden"


class DDIMWithRecordedNoise(DDIMScheduler):
    """Takes the fresh noise of each step from a recording and keeps what each step makes of the latents."""

    def record(self, noise):
        self.noise = iter(torch.from_numpy(noise))
        self.clean_latents = []

    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        output = super().step(model_output, timestep, sample, eta=eta, variance_noise=next(self.noise))
        self.clean_latents.append(output.pred_original_sample)
        return output if return_dict else (output.prev_sample,)


@pytest.fixture
def golden():
    return np.load(GOLDEN / "ddim.npz")


@pytest.fixture
def paper_pipe(build_components):
    """The tiny published network in a pipeline; its decoder plays no part here."""
    transformer = QAMDTTransformer2DModel(
        **transformer_config_from_original(json.loads((GOLDEN / "tiny_p4x1.json").read_text()))
    )
    transformer.load_state_dict(convert_transformer_state_dict(load_file(GOLDEN / "tiny_p4x1.safetensors")))
    noise_schedule = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    pipe = QAMDTPipeline(
        **build_components() | {"transformer": transformer.eval(), "scheduler": paper_scheduler(noise_schedule)}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("num_steps", [10, 50, 100, 200])
def test_timesteps_and_noise_levels_are_the_published_ones(golden, paper_pipe, num_steps):
    scheduler = paper_pipe.scheduler
    scheduler.set_timesteps(num_steps)
    timesteps = golden[f"ddim_timesteps_{num_steps}"]
    np.testing.assert_array_equal(scheduler.timesteps.numpy()[::-1], timesteps)
    variances = [scheduler._get_variance(int(t), int(t) - 1000 // num_steps) for t in timesteps]
    np.testing.assert_allclose(np.sqrt(variances), golden[f"ddim_sigmas_{num_steps}_eta1"], atol=1e-5)


def test_the_published_trajectory_is_reproduced(golden, paper_pipe):
    scheduler = DDIMWithRecordedNoise.from_config(paper_pipe.scheduler.config)
    scheduler.record(golden["traj_noise"])
    paper_pipe.scheduler = scheduler
    levels = golden["traj_mos"][:, 0].tolist()
    assert golden["traj_uncond_mos"].tolist() == [[3], [3]]  # what `negative_quality="medium"` stands for

    latents = paper_pipe(
        prompt_embeds=torch.from_numpy(golden["traj_context"]),
        prompt_attention_mask=torch.from_numpy(golden["traj_context_mask"]),
        negative_prompt_embeds=torch.from_numpy(golden["traj_uncond"]),
        quality=[[PUBLISHED_QUALITY_STATS.score(level)] for level in levels],
        audio_length_in_s=paper_pipe.native_audio_length_in_s,
        latents=torch.from_numpy(golden["traj_x_T"]),
        output_type="latent",
        **PAPER_SETTINGS | {"num_inference_steps": 10},
    ).audios

    # Values reach 247, because the untrained network's errors are multiplied by up to 84. The bound is one of float32
    # at that size: in float64 the distance is the same, so it is the recording's own rounding.
    for actual, expected in (
        (torch.stack(scheduler.clean_latents), golden["traj_pred_x0"]),
        (latents, golden["traj_samples"]),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
