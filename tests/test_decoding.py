"""The vocoder, the spectral distance and decoding in chunks."""

import pytest
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from qamdt.audio import LogMel
from qamdt.decoders.spectral_losses import multi_resolution_stft_distance
from qamdt.decoding import decode_latents, latents_to_waveform, mel_to_waveform, vae_scale_factor
from qamdt.models.vocoder_istft import ISTFTVocoder, inverse_stft, overlap_add
from tests.tiny_autoencoders import build_autoencoder_kl, build_autoencoder_waveform


@pytest.fixture
def vocoder() -> ISTFTVocoder:
    torch.manual_seed(0)
    return ISTFTVocoder(dim=16, num_layers=2).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_vocoder_makes_one_hop_of_samples_per_frame(vocoder):
    waveforms = vocoder(noise(2, 50, 64))
    assert waveforms.shape == (2, 50 * 160)
    assert torch.isfinite(waveforms).all()


def test_vocoder_of_a_batch_equals_its_clips(vocoder):
    mel_spectrogram = noise(2, 20, 64)
    singles = torch.cat([vocoder(mel_spectrogram[:1]), vocoder(mel_spectrogram[1:])])
    torch.testing.assert_close(vocoder(mel_spectrogram), singles)


def test_vocoder_saves_and_loads(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path)
    mel_spectrogram = noise(1, 20, 64)
    torch.testing.assert_close(ISTFTVocoder.from_pretrained(tmp_path)(mel_spectrogram), vocoder(mel_spectrogram))


def test_vocoder_names_a_wrong_shape(vocoder):
    with pytest.raises(ValueError, match=r"\(batch, frames, 64\), got \(1, 20, 80\)"):
        vocoder(noise(1, 20, 80))


def test_inverse_stft_inverts_the_front_end(vocoder):
    waveform = noise(1, 4800)
    front_end = LogMel()
    padded = torch.nn.functional.pad(waveform[:, None], (432, 432), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, 160, window=front_end.window, center=False, return_complex=True)
    torch.testing.assert_close(
        inverse_stft(spectrum, vocoder.window, vocoder.config.hop_length), waveform, atol=1e-4, rtol=1e-4
    )


def test_overlap_add_equals_the_sum_written_out():
    frames = noise(1, 4, 10)
    expected = torch.zeros(1, 3 * 4 + 10)
    for index in range(4):
        expected[:, index * 4 : index * 4 + 10] += frames[:, index]
    torch.testing.assert_close(overlap_add(frames, 4)[:, :22], expected)


def test_stft_distance_is_zero_for_equal_sounds_and_grows_with_noise():
    waveform = noise(1, 8000)
    other = torch.randn(1, 8000, generator=torch.Generator().manual_seed(2))
    distances = [multi_resolution_stft_distance(waveform + gain * other, waveform).item() for gain in (0, 0.1, 0.5)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


def test_vocoding_in_chunks_equals_vocoding_at_once(vocoder):
    mel_spectrogram = noise(1, 1, 200, 64)
    whole = mel_to_waveform(vocoder, mel_spectrogram)
    chunked = mel_to_waveform(vocoder, mel_spectrogram, chunk_frames=40, context_frames=32)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


def test_hifigan_is_a_vocoder_too():
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=8,
        upsample_rates=[5, 4],
        upsample_kernel_sizes=[16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    hifigan = SpeechT5HifiGan(config).eval()
    assert mel_to_waveform(hifigan, noise(1, 1, 30, 64)).shape == (1, 600)
    chunked = mel_to_waveform(hifigan, noise(2, 1, 100, 64), chunk_frames=20, context_frames=16)
    torch.testing.assert_close(chunked, mel_to_waveform(hifigan, noise(2, 1, 100, 64)), atol=1e-5, rtol=1e-4)


def test_latents_decode_to_the_frames_they_stand_for():
    vae = build_autoencoder_kl()
    assert vae_scale_factor(vae) == 4
    latents = noise(1, 2, 40, 16)
    whole = decode_latents(vae, latents)
    assert whole.shape == (1, 1, 160, 64)
    # Group statistics are taken over a chunk, so chunks equal the whole nearly, not exactly.
    chunked = decode_latents(vae, latents, chunk_frames=10, context_frames=8)
    assert (chunked - whole).abs().mean() < 0.2 * whole.std()


def test_latents_lie_at_the_scale_of_the_autoencoder_config():
    vae, latents = build_autoencoder_kl(), noise(1, 2, 8, 16)
    vae.register_to_config(scaling_factor=0.4)
    with torch.no_grad():
        expected = vae.decode(latents / 0.4).sample
    torch.testing.assert_close(decode_latents(vae, latents), expected)

    autoencoder, latents = build_autoencoder_waveform(latent_channels=4), noise(1, 4, 8, 1)
    autoencoder.register_to_config(scaling_factor=0.4)
    with torch.no_grad():
        expected = autoencoder.decode(latents / 0.4).sample
    torch.testing.assert_close(latents_to_waveform(autoencoder, latents), expected)
