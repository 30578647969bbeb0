"""A pipeline whose autoencoder makes waveforms has no vocoder."""

import numpy as np
import pytest
import torch

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.decoding import latents_to_waveform
from tests.tiny_autoencoders import build_autoencoder_waveform


@pytest.fixture
def autoencoder():
    return build_autoencoder_waveform(4, latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(1.0, 2.0, 3.0, 4.0))


@pytest.fixture
def pipe(build_components, autoencoder):
    components = build_components(sample_size=(8, 1), patch_size=(1, 1), in_channels=4)
    pipe = QAMDTPipeline(**components | {"vae": autoencoder, "vocoder": None})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, **arguments):
    return pipe("calm piano", num_inference_steps=2, generator=torch.Generator().manual_seed(0), **arguments).audios


def test_it_generates_at_the_rate_of_the_autoencoder(pipe):
    assert pipe.sampling_rate == 16_000
    assert pipe.native_audio_length_in_s == pytest.approx(0.64)
    assert generate(pipe, audio_length_in_s=1.0).shape == (1, 16_000)


def test_it_is_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = QAMDTPipeline.from_pretrained(tmp_path)
    assert loaded.vocoder is None
    np.testing.assert_array_equal(generate(loaded), generate(pipe))


def test_latents_decode_to_the_audio(pipe, autoencoder):
    latents = generate(pipe, output_type="latent")
    expected = autoencoder.decode(latents).sample.detach().numpy()
    np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)


def test_long_clips_are_decoded_in_chunks_that_fit_together(autoencoder):
    latents = torch.randn(1, 4, 60, 1)
    whole = latents_to_waveform(autoencoder, latents)
    torch.testing.assert_close(
        latents_to_waveform(autoencoder, latents, chunk_frames=8, context_frames=16), whole, atol=1e-4, rtol=1e-3
    )


def test_a_vocoder_goes_with_spectrograms_alone(build_components, autoencoder):
    with pytest.raises(ValueError, match="`vocoder` must be None for an autoencoder of waveforms"):
        QAMDTPipeline(**build_components() | {"vae": autoencoder})
    with pytest.raises(ValueError, match="got NoneType beside AutoencoderKL"):
        QAMDTPipeline(**build_components() | {"vocoder": None})
