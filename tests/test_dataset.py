import dataclasses
import math

import numpy as np
import pytest
import torch

from qamdt.files import write_json
from qamdt.latent_folder import INDEX_NAME, open_folder
from qamdt.manifest import Record
from qamdt.music import CHORD, KEY, RHYTHM, Music, music_curve
from qamdt.quality import QualityStats
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset, collate
from qamdt.training.sampling import EpochSampler


NUM_CLIPS, NUM_FRAMES, TEXT_DIM = 12, 20, 4
STATS = QualityStats(mean=3, std=1, edges=(2, 2.5, 3, 4), prefix_edges=(2.2, 3.8), scorer="test", num_clips=NUM_CLIPS)
CHORDS = ((0.0, "Am"), (0.5, "F"), (1.0, "C/E"))
PREFIXES = ("", "low quality, ", "medium quality, ", "high quality, ")
CAPTIONS = [f"{word} {i}" for i in range(NUM_CLIPS) for word in ("song", "music")]
TEXTS = ["", *(prefix + caption for prefix in PREFIXES for caption in CAPTIONS)]


def text_state(text):
    """States that spell the text, so that a test can tell whose they are."""
    return torch.tensor([float(ord(letter)) for letter in text + "."]).unsqueeze(-1).repeat(1, TEXT_DIM)


@pytest.fixture
def corpus(tmp_path, write_latents):
    """Writes twelve clips in two shards, about which everything says their number, and more clips after them."""

    def write(*more):
        """`more` are clips as (id, mean, quality curve or `None`)."""
        records = [
            Record(
                id=f"clip-{i}",
                path=f"{i}.wav",
                duration_in_s=1.6,
                captions=(f"song {i}", f"music {i}"),
                source="first" if i < 6 else "second",
                quality_score=1 + i / 4,
                tempo_bpm=60 + i,
                first_beat_in_s=0.0,
                time_signature="3/4",
                key="A minor",
                chords=CHORDS,
            )
            for i in range(NUM_CLIPS)
        ]
        columns = torch.arange(NUM_FRAMES)[:, None] / 100
        means = [torch.full((2, NUM_FRAMES, 3), float(i)) + columns for i in range(NUM_CLIPS)]
        curves = {f"clip-{i}": {"quality": torch.full((NUM_FRAMES,), 1 + i / 4)} for i in range(NUM_CLIPS)}
        records += [
            Record(id=name, path=f"{name}.wav", duration_in_s=1.6, captions=("song 0",)) for name, _, _ in more
        ]
        means += [mean for _, mean, _ in more]
        curves |= {name: {"quality": curve} for name, _, curve in more if curve is not None}
        stds = [torch.zeros_like(mean) for mean in means]
        states = {text: text_state(text) for text in TEXTS}
        quality = STATS.to_dict()
        write_latents(tmp_path, records, means, stds, states, curves=curves, clips_per_shard=8, quality=quality)
        return tmp_path

    return write


@pytest.fixture
def shards(corpus):
    return corpus()


def make_dataset(shards, **changes):
    return LatentDataset(DataConfig(latents=str(shards), **{"crop_in_frames": 8, **changes}), seed=0)


def test_audio_caption_and_quality_of_a_draw_belong_to_one_clip(shards):
    dataset = make_dataset(shards, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0, text_dropout=0)
    levels = [STATS.level(1 + clip / 4) for clip in range(NUM_CLIPS)]
    fractions = [STATS.fractional_level(1 + clip / 4) for clip in range(NUM_CLIPS)]
    prefixes = [STATS.prefix(1 + clip / 4) for clip in range(NUM_CLIPS)]
    states = {text: text_state(text)[:, 0].tolist() for text in TEXTS}
    batches = iter(EpochSampler(dataset.buckets(), batch_size=100, seed=0))
    for sample in (dataset[draw] for _ in range(20) for draw in next(batches)):
        clip = int(sample.id.removeprefix("clip-"))
        assert math.floor(sample.latents.min()) == math.floor(sample.latents.max()) == clip
        assert sample.quality_score == 1 + clip / 4
        assert sample.quality_level == levels[clip]
        assert abs(sample.frame_quality - fractions[clip]).max() < 1e-5
        assert sample.text.removeprefix(prefixes[clip]) in (f"song {clip}", f"music {clip}")
        assert sample.encoder_hidden_states[:, 0].tolist() == states[sample.text]


def test_the_score_of_a_crop_is_the_mean_of_its_own_frames(corpus):
    curve = torch.linspace(1, 5, NUM_FRAMES)
    mean = torch.arange(NUM_FRAMES).float()[None, :, None].expand(2, -1, 3)
    folder = corpus(("rising", mean, curve))
    dataset = make_dataset(folder, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0, text_dropout=0)
    starts = set()
    for epoch in range(30):
        sample = dataset[epoch, NUM_CLIPS, 0]
        start = round(sample.latents[0, 0, 0].item())
        starts.add(start)
        assert sample.quality_score == pytest.approx(curve[start : start + 8].mean().item(), abs=1e-3)
        expected = STATS.fractional_level(curve[start : start + 8])
        torch.testing.assert_close(sample.frame_quality, expected)
    assert len(starts) > 8


def test_conditions_are_left_out_each_by_itself_and_as_often_as_asked(shards):
    dataset = make_dataset(shards, prefix_probability=0.5)
    samples = [dataset[epoch, number, 0] for epoch in range(100) for number in range(NUM_CLIPS)]

    def share(is_left_out):
        return np.mean([is_left_out(sample) for sample in samples])

    assert share(lambda s: s.text == "") == pytest.approx(0.1, abs=0.03)
    assert share(lambda s: s.quality_level == 0) == pytest.approx(1 - 0.9 * 0.9, abs=0.04)
    assert share(lambda s: s.frame_quality.sum() == 0) == pytest.approx(1 - 0.9 * 0.7, abs=0.04)
    assert share(lambda s: s.global_quality == 0) == pytest.approx(1 - 0.9 * 0.7, abs=0.04)
    assert share(lambda s: "quality, " in s.text) == pytest.approx(0.9 * 0.9 * 0.5, abs=0.05)
    in_one_batch = {sample.text == "" for sample in samples[:64]}
    assert in_one_batch == {True, False}


def test_a_clip_without_a_curve_has_no_quality(corpus):
    folder = corpus(("unrated", torch.zeros(2, NUM_FRAMES, 3), None))
    dataset = make_dataset(folder, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0)
    sample = dataset[0, NUM_CLIPS, 0]
    assert math.isnan(sample.quality_score)
    assert (sample.quality_level, sample.global_quality) == (0, 0)
    assert sample.frame_quality.tolist() == [0] * 8
    assert dataset[0, NUM_CLIPS - 1, 0].quality_level > 0


def test_text_without_quality_has_no_prefix(shards):
    dataset = make_dataset(shards, quality_dropout=1.0, prefix_probability=1.0)
    samples = [dataset[0, number, 0] for number in range(NUM_CLIPS)]
    assert not any("quality" in sample.text for sample in samples)
    assert all(sample.quality_level == sample.global_quality == 0 for sample in samples)


def test_a_draw_does_not_depend_on_what_was_drawn_before(shards):
    first, second = make_dataset(shards), make_dataset(shards)
    for number in range(NUM_CLIPS):
        first[0, number, 0]
    a, b = first[3, 5, 0], second[3, 5, 0]
    assert (a.text, a.seed, a.quality_level) == (b.text, b.seed, b.quality_level)
    torch.testing.assert_close(a.latents, b.latents)


def test_global_quality_is_that_of_the_clip_whatever_the_crop(corpus):
    rising = torch.linspace(1.0, 4.9, NUM_FRAMES)
    folder = corpus(("rising", torch.zeros(2, NUM_FRAMES, 3), rising))
    index = open_folder(folder).index
    assert index["num_clips"] == NUM_CLIPS + 1
    dataset = make_dataset(folder, quality_dropout=0, global_quality_dropout=0, clip_quality_dropout=0)
    dataset.latents.columns = dataset.latents.columns.copy()
    dataset.latents.columns["quality_score"][NUM_CLIPS] = 3.5
    dataset._global_levels = dataset._find_global_levels()
    samples = [dataset[epoch, NUM_CLIPS, 0] for epoch in range(30)]
    assert {sample.global_quality for sample in samples} == {STATS.level(3.5)}
    assert len({sample.quality_level for sample in samples}) > 1


def test_global_quality_can_be_that_of_the_source(shards):
    dataset = make_dataset(shards, global_quality_from="source", quality_dropout=0, global_quality_dropout=0)
    means = {"first": np.mean([1 + i / 4 for i in range(6)]), "second": np.mean([1 + i / 4 for i in range(6, 12)])}
    assert dataset[0, 0, 0].global_quality == STATS.level(means["first"])
    assert dataset[0, 11, 0].global_quality == STATS.level(means["second"])


def test_collate_pads_texts_and_marks_the_padding(shards):
    dataset = make_dataset(shards)
    samples = [
        dataclasses.replace(dataset[0, i, 0], encoder_hidden_states=torch.ones(i + 1, TEXT_DIM)) for i in range(3)
    ]
    told = collate(samples).conditions
    assert told.texts.shape == (3, 3, TEXT_DIM)
    assert told.mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert told.texts.sum(dim=(1, 2)).tolist() == [TEXT_DIM, 2 * TEXT_DIM, 3 * TEXT_DIM]


def test_collate_passes_on_what_is_known_of_each_sample(shards):
    dataset = make_dataset(shards, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0)
    samples = [dataset[0, i, 0] for i in range(3)]
    batch = collate(samples)
    assert batch.captions == [sample.text for sample in samples]
    assert batch.conditions.levels["clip"].tolist() == [sample.quality_level for sample in samples]
    assert batch.conditions.levels["global"].tolist() == [sample.global_quality for sample in samples]
    assert torch.equal(batch.conditions.curves["quality"], torch.stack([sample.frame_quality for sample in samples]))


def test_workers_read_what_one_process_reads(shards):
    def read(num_workers):
        dataset = make_dataset(shards)
        sampler = EpochSampler(dataset.buckets(), batch_size=4, seed=0)
        loader = torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers
        )
        batches = iter(loader)
        return [next(batches) for _ in range(5)]

    for alone, together in zip(read(0), read(2), strict=True):
        assert alone.ids == together.ids
        torch.testing.assert_close(alone.latents, together.latents)


def test_short_clips_are_counted_and_too_long_crops_refused(corpus):
    folder = corpus(("short", torch.zeros(2, 5, 3), None))
    assert make_dataset(folder).num_short_clips == 1
    with pytest.raises(ValueError, match=r"`data.crop_in_frames` is 99, but the longest clip in .* has 20"):
        make_dataset(folder, crop_in_frames=99)


def test_a_clip_gives_crops_of_the_longest_length_that_fits(corpus):
    folder = corpus(("short", torch.zeros(2, 10, 3), None), ("shorter", torch.zeros(2, 5, 3), None))
    dataset = make_dataset(folder, crop_in_frames=[20, 8])
    assert dataset.num_short_clips == 1
    assert [bucket.tolist() for bucket in dataset.buckets()] == [[NUM_CLIPS], list(range(NUM_CLIPS))]
    assert dataset[0, 0, 0].latents.shape[1] == 20
    assert dataset[0, NUM_CLIPS, 0].latents.shape[1] == 8


def test_weights_follow_the_levels(shards):
    weights = make_dataset(shards, level_weights=[1.0, 2.0, 3.0, 4.0, 5.0]).weights()
    assert weights.tolist() == [float(STATS.level(1 + i / 4)) for i in range(NUM_CLIPS)]
    index = open_folder(shards).index
    write_json(shards / INDEX_NAME, {**index, "quality": None})
    with pytest.raises(ValueError, match="have no quality scores"):
        make_dataset(shards, level_weights=[1.0, 2.0, 3.0, 4.0, 5.0]).weights()


def test_latents_are_scaled_as_the_autoencoder_says_unless_that_is_far_off(shards):
    index = open_folder(shards).index
    write_json(shards / INDEX_NAME, {**index, "scaling_factor": 0.46, "vae_scaling_factor": 0.45})
    assert make_dataset(shards).scaling_factor == 0.45
    write_json(shards / INDEX_NAME, {**index, "scaling_factor": 0.46, "vae_scaling_factor": 0.18215})
    with pytest.raises(ValueError, match=r"says `scaling_factor` 0\.18215, but 0\.46000 gives"):
        make_dataset(shards)
    assert make_dataset(shards, scaling_factor=0.46).scaling_factor == 0.46


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no finished folder of latents"):
        LatentDataset(DataConfig(latents=str(tmp_path)), seed=0)


def test_the_music_of_a_crop_is_that_of_its_clip_and_its_moment(shards):
    dataset = make_dataset(shards, text_dropout=0, rhythm_dropout=0, key_dropout=0, chord_dropout=0)
    for number in range(NUM_CLIPS):
        sample = dataset[(0, number, 0)]
        start = round((sample.latents[0, 0, 0].item() - number) * 100)  # as the latents tell
        music = Music(tempo_bpm=60 + number, first_beat_in_s=0.0, time_signature="3/4", key="A minor", chords=CHORDS)
        expected = music_curve(music, (start + np.arange(8) + 0.5) * 0.08, 0.08)
        np.testing.assert_allclose(sample.music.numpy(), expected, atol=1e-6)


def test_rhythm_key_and_chords_are_left_out_each_by_itself_and_all_with_the_text(shards):
    dataset = make_dataset(shards, text_dropout=0.2, rhythm_dropout=0.3, key_dropout=0.5, chord_dropout=0.7)
    samples = [dataset[(epoch, number, 0)] for epoch in range(60) for number in range(NUM_CLIPS)]
    with_text = [sample for sample in samples if sample.text]
    for rows, dropout in ((RHYTHM, 0.3), (KEY, 0.5), (CHORD, 0.7)):
        share = np.mean([not sample.music[:, rows].any() for sample in with_text])
        assert share == pytest.approx(dropout, abs=0.06)
    assert not any(sample.music.any() for sample in samples if not sample.text)
