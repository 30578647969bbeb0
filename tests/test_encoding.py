"""From sound to latents: what the autoencoder says, for any length, in pieces as well as at once."""

import pytest
import torch

from qamdt.audio import LogMel
from qamdt.decoding import decode_latents
from qamdt.encoding import encode_waveforms, samples_per_latent_frame
from tests.tiny_autoencoders import build_autoencoder_kl, build_fast_autoencoder_waveform


@pytest.fixture(params=["spectrogram", "waveform"])
def parts(request):
    """An autoencoder of each kind, and what it hears spectrograms with."""
    return (
        (build_autoencoder_kl(), LogMel())
        if request.param == "spectrogram"
        else (build_fast_autoencoder_waveform(), None)
    )


def noise(num_samples, batch_size=2):
    return 0.1 * torch.randn(batch_size, num_samples, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_latents_are_those_of_the_autoencoder(parts):
    vae, log_mel = parts
    waveforms = noise(640 * 20)
    posterior = encode_waveforms(vae, waveforms, log_mel)
    expected = vae.encode(waveforms if log_mel is None else log_mel(waveforms)).latent_dist
    assert torch.equal(posterior.mean, expected.mean)
    assert torch.equal(posterior.std, expected.std)
    assert posterior.mean.shape[:3] == (2, 2, 20)


def test_what_is_missing_to_a_whole_frame_is_silence(parts):
    vae, log_mel = parts
    assert samples_per_latent_frame(vae, log_mel) == 640
    waveforms = noise(640 * 19 + 1)
    silent = torch.nn.functional.pad(waveforms, (0, 639))
    mean = encode_waveforms(vae, waveforms, log_mel).mean
    assert mean.shape[2] == 20
    assert torch.equal(mean, encode_waveforms(vae, silent, log_mel).mean)


def test_pieces_equal_the_whole_nearly(parts):
    vae, log_mel = parts
    waveforms = noise(640 * 100, batch_size=1)
    whole = encode_waveforms(vae, waveforms, log_mel).mean
    pieces = encode_waveforms(vae, waveforms, log_mel, chunk_frames=20, context_frames=16).mean
    assert pieces.shape == whole.shape
    # Attention and group statistics are taken over a piece.
    assert (pieces - whole).abs().mean() < 0.1 * whole.std()


def test_decoding_goes_back_to_as_many_frames():
    vae = build_autoencoder_kl()
    mean = encode_waveforms(vae, noise(640 * 20), LogMel()).mean
    assert decode_latents(vae, mean * vae.config.scaling_factor).shape == (2, 1, 80, 64)
