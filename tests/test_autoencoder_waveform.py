"""The autoencoder from waveform to waveform, and the losses it is trained with."""

import math

import pytest
import torch

from qamdt.audio import write_audio
from qamdt.decoders.spectral_losses import attack_error, fine_frequency_error
from qamdt.decoders.train_autoencoder import (
    AutoencoderLoss,
    effective_rank,
    export_autoencoder,
    main,
    measure_channels,
    pitch_class_filters,
)
from qamdt.manifest import Record, write_manifest
from qamdt.models.autoencoder_waveform import AutoencoderWaveform, ConvNeXtStage
from tests.tiny_autoencoders import build_autoencoder_waveform


@pytest.fixture
def autoencoder() -> AutoencoderWaveform:
    return build_autoencoder_waveform(8)


def sine(frequency_hz: float, num_samples: int = 20_480) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples) / 16_000)[None]


@pytest.mark.parametrize("num_samples", [1, 1280, 12_801, 20_480])
def test_any_length_comes_back_with_its_length(autoencoder, num_samples):
    waveforms = torch.randn(2, num_samples) * 0.1
    assert autoencoder(waveforms).sample.shape == waveforms.shape


def test_latents_are_columns_of_eighty_milliseconds(autoencoder):
    latents = autoencoder.encode(torch.zeros(1, 16_000 * 2)).latent_dist.mode()
    assert latents.shape == (1, 8, 25, 1)
    assert autoencoder.decode(latents).sample.shape == (1, 32_000)


def test_a_batch_is_its_members(autoencoder):
    waveforms = torch.randn(3, 12_800) * 0.1
    together = autoencoder(waveforms).sample
    apart = torch.cat([autoencoder(waveform[None]).sample for waveform in waveforms])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_it_is_saved_and_loaded(autoencoder, tmp_path):
    autoencoder.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderWaveform.from_pretrained(tmp_path)
    assert loaded.config.latents_std == [2.0] * 8
    waveforms = torch.randn(1, 12_800) * 0.1
    torch.testing.assert_close(loaded(waveforms).sample, autoencoder(waveforms).sample)


def test_exported_latents_have_unit_variance_in_every_channel_and_sound_the_same(autoencoder, tmp_path):
    waveforms = torch.randn(4, 25_600) * 0.1
    before = autoencoder(waveforms).sample
    own_latents = autoencoder.encode(waveforms).latent_dist.mode()
    export_autoencoder(autoencoder, measure_channels(autoencoder, waveforms), tmp_path)
    # The one that trains goes on as it was: its loss is of its own latents.
    torch.testing.assert_close(autoencoder.encode(waveforms).latent_dist.mode(), own_latents)

    exported = AutoencoderWaveform.from_pretrained(tmp_path)
    latents = exported.encode(waveforms).latent_dist.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(exported(waveforms).sample, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7, 10, 1), (1, 8, 10), (1, 8, 10, 2)])
def test_latents_of_another_shape_are_refused(autoencoder, shape):
    with pytest.raises(ValueError, match="`latents` must have shape"):
        autoencoder.decode(torch.zeros(shape))


def test_the_fine_frequency_error_hears_a_quarter_tone_and_not_the_phase():
    tone, shifted, other_phase = sine(220.0), sine(220.0 * 2 ** (1 / 24)), sine(220.0).flip(1)
    assert fine_frequency_error(tone, tone, 16_000) < 5e-3  # magnitudes have a floor
    assert fine_frequency_error(shifted, tone, 16_000) > 3 * fine_frequency_error(other_phase, tone, 16_000)


def test_each_pitch_lies_in_its_class():
    filters = pitch_class_filters(16_000, 4096)
    for pitch in range(45, 90):  # A2 to F6
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        weights = filters[:, round(frequency * 4096 / 16_000)]
        assert int(weights.argmax()) == pitch % 12


def test_the_effective_rank_counts_directions_and_not_channels():
    directions = torch.randn(4000, 4)
    directions = torch.linalg.qr(directions - directions.mean(dim=0))[0]  # uncorrelated, alike in size
    repeated = directions @ torch.linalg.qr(torch.randn(4, 4))[0] @ torch.eye(4).repeat(1, 3)  # twelve channels
    torch.testing.assert_close(effective_rank(directions), torch.tensor(4.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(effective_rank(repeated), torch.tensor(4.0), atol=1e-3, rtol=0)
    assert effective_rank(directions[:, :1].repeat(1, 5)) < 1.001


def test_blocks_of_a_stage_count_whatever_the_size_of_what_comes_in():
    torch.manual_seed(0)
    stage, frames = ConvNeXtStage(16, 3), torch.randn(2, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(stage(100 * frames), stage(frames), atol=1e-4, rtol=1e-4)


def test_the_loss_trains_every_weight_and_repeats(autoencoder):
    loss = AutoencoderLoss(
        autoencoder.train(),
        kl_target=0.0,
        kl_weight=0.05,
        masked_share=0.5,
        pitch_weight=0.1,
        attack_weight=0.3,
        bf16=False,
    )
    waveforms = torch.randn(2, 20_480) * 0.1
    first, second = (loss(waveforms, torch.Generator().manual_seed(1))["loss"] for _ in range(2))
    assert first == second
    first.backward()
    untrained = [name for name, weight in loss.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert untrained == []


def test_a_few_steps_lower_the_loss(autoencoder):
    loss = AutoencoderLoss(
        autoencoder.train(),
        kl_target=3.0,
        kl_weight=0.05,
        masked_share=0.25,
        pitch_weight=0.1,
        attack_weight=0.3,
        bf16=False,
    )
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    waveforms = torch.cat([sine(220.0), sine(330.0)])
    values = []
    for _ in range(25):
        value = loss(waveforms, torch.Generator().manual_seed(1))["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_the_attack_error_hears_a_slow_beginning_and_no_other_difference():
    time = torch.arange(20_480) / 16_000
    tone = sine(220.0)
    sharp = tone * (time % 0.4 > 0.2)
    soft = tone * ((time % 0.4 - 0.2) / 0.1).clamp(0, 1)
    assert attack_error(sharp, sharp) == 0
    assert attack_error(soft, sharp) > 0.5
    assert attack_error(1.1 * sharp, sharp) < 0.2 * attack_error(soft, sharp)
    late = sharp.roll(320, dims=1)  # 20 ms: past the window, so no attack is where it should be
    assert attack_error(late, sharp) > attack_error(soft, sharp)


def test_a_frozen_encoder_leaves_the_latents_as_they_were(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    write_audio(tmp_path / "tone.flac", sine(220.0)[0], 16_000)
    write_manifest(manifest, [Record(id="tone", path="tone.flac", duration_in_s=1.28)])
    build_autoencoder_waveform(8).save_pretrained(tmp_path / "first")
    command = ["--manifest", str(manifest), "--crop-in-s", "0.64", "--batch-size", "2", "--num-steps", "2"]
    main([*command, "--init", str(tmp_path / "first"), "--freeze-encoder", "--output-dir", str(tmp_path / "run")])

    before, after = (
        AutoencoderWaveform.from_pretrained(folder)
        for folder in (tmp_path / "first", tmp_path / "run" / "autoencoder")
    )
    assert after.config.latents_std == before.config.latents_std
    changed = [
        name for name, weight in after.state_dict().items() if not torch.equal(weight, before.state_dict()[name])
    ]
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_a_frozen_encoder_needs_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--manifest", "none.jsonl", "--freeze-encoder", "--output-dir", str(tmp_path)])
    assert "`--init`" in capsys.readouterr().err
