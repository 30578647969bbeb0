import math

import pytest
import torch

from whisq.audio import LogMel
from whisq.modeling_audio_tower import AudioTower
from whisq.modeling_clap import MiniClap


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return AudioTower(channels=(4, 6, 8), hidden_size=16, num_layers=2).eval()


@pytest.fixture(scope="module")
def clap():
    torch.manual_seed(0)
    return MiniClap(channels=(4, 6, 8), hidden_size=16, num_layers=2, embedding_size=12).eval()


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_token_stands_for_eighty_milliseconds(tower):
    hidden_states, mask = tower.encode(noise(2, 32_000))
    assert hidden_states.shape == (2, 25, 16)
    assert mask.all()
    assert tower.frames_per_s == 12.5


@pytest.mark.parametrize("num_samples", [16_000, 16_999, 21_111])
def test_padding_and_company_change_no_token(tower, num_samples):
    short, long = noise(1, num_samples), noise(1, 48_000)
    alone, alone_mask = tower.encode(short)
    batch = torch.cat([torch.nn.functional.pad(short, (0, 48_000 - num_samples)), long])
    batch[0, num_samples:] = 0.3  # not even what lies behind the end of the clip is heard
    together, mask = tower.encode(batch, torch.tensor([num_samples, 48_000]))
    num_tokens = int(alone_mask.sum())
    assert mask.sum(dim=1).tolist() == [num_tokens, 37]
    torch.testing.assert_close(together[0, :num_tokens], alone[0, :num_tokens], atol=1e-5, rtol=0)
    assert (together[0, num_tokens:] == 0).all()


def test_a_token_hears_its_surroundings_and_no_more(tower):
    waveform = noise(1, 64_000)
    changed = waveform.clone()
    changed[:, :8_000] = 0.0
    difference = (tower.encode(waveform)[0] - tower.encode(changed)[0]).abs().amax(dim=2)[0]
    # Half a second is changed; two blocks see six tokens to each side, the stages and the STFT window less than two.
    assert (difference[:6] > 0).all()
    assert (difference[6 + 8 :] < 1e-6).all()


def test_a_clip_shorter_than_a_token_still_has_one(tower):
    _, mask = tower.encode(noise(1, 400))
    assert mask.tolist() == [[True]]
    with pytest.raises(ValueError, match="`waveforms` must have shape"):
        LogMel()(noise(1, 100))


def test_a_tone_is_loudest_in_its_own_band():
    time = torch.arange(16_000) / 16_000
    mel_spectrogram = LogMel()(torch.sin(2 * math.pi * 440 * time)[None])
    frequencies = LogMel().filters.argmax(dim=0) * 16_000 / 1024
    assert mel_spectrogram.shape == (1, 100, 64)
    band = mel_spectrogram[0, 20:80].mean(dim=0).argmax()
    assert abs(frequencies[band] - 440) < 40


def test_embeddings_are_unit_vectors_and_survive_saving(clap, tmp_path):
    waveforms = noise(3, 32_000)
    audio = clap.embed_audio(waveforms, torch.tensor([32_000, 20_000, 16_000]))
    text = clap.embed_text(["solo piano", "loud drums"])
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    assert clap.similarity(audio, text).shape == (3, 2)
    clap.save_pretrained(tmp_path)
    reloaded = MiniClap.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded.embed_audio(waveforms[1:2, :20_000]), audio[1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(reloaded.embed_text(["loud drums"]), text[1:], atol=1e-5, rtol=0)
