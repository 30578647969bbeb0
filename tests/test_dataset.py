import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from qamdt.config import DataConfig
from qamdt.dataset import LatentDataset, collate
from qamdt.files import write_json
from qamdt.manifest import Record
from qamdt.music import CHORD, KEY, RHYTHM, Music, music_curve
from qamdt.quality import QualityStats
from qamdt.sampling import EpochSampler
from qamdt.shards import INDEX_NAME, LatentShards, list_shards, open_folder, write_latent_shard, write_text_shard


NUM_CLIPS, NUM_FRAMES, TEXT_DIM = 12, 20, 4
STATS = QualityStats(mean=3, std=1, edges=(2, 2.5, 3, 4), prefix_edges=(2.2, 3.8), scorer="test", num_clips=NUM_CLIPS)
CHORDS = ((0.0, "Am"), (0.5, "F"), (1.0, "C/E"))
PREFIXES = ("", "low quality, ", "medium quality, ", "high quality, ")


def text_state(text):
    """States that spell the text, so that a test can tell whose they are."""
    return torch.tensor([float(ord(letter)) for letter in text + "."]).unsqueeze(-1).repeat(1, TEXT_DIM)


@pytest.fixture
def shards(tmp_path):
    """Two shards in which everything about clip i says i: latents, captions and quality."""
    for start in range(0, NUM_CLIPS, 8):
        numbers = range(start, min(start + 8, NUM_CLIPS))
        curves = [torch.full((NUM_FRAMES,), 1 + i / 4) for i in numbers]
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
            for i in numbers
        ]
        means = [torch.full((2, NUM_FRAMES, 3), float(i)) + torch.arange(NUM_FRAMES)[:, None] / 100 for i in numbers]
        write_latent_shard(tmp_path, records, means, [torch.zeros_like(mean) for mean in means], curves)
    captions = [f"{word} {i}" for i in range(NUM_CLIPS) for word in ("song", "music")]
    texts = ["", *(prefix + caption for prefix in PREFIXES for caption in captions)]
    write_text_shard(tmp_path, texts, [text_state(text) for text in texts])
    write_json(
        tmp_path / INDEX_NAME,
        {
            "scaling_factor": 1.0,
            "vae_scaling_factor": 1.0,
            "quality": STATS.to_dict(),
            "max_captions": None,
            "latent_frames_per_second": 12.5,
        },
    )
    return tmp_path


def make_dataset(shards, **changes):
    return LatentDataset(DataConfig(latents=str(shards), **{"crop_in_frames": 8, **changes}), seed=0)


def texts_of(folder):
    return [json.loads(line) for line in (folder / "texts-00000.jsonl").read_text().splitlines()]


def test_audio_caption_and_quality_of_a_draw_belong_to_one_clip(shards):
    dataset = make_dataset(shards, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0, text_dropout=0)
    levels = [STATS.level(1 + clip / 4) for clip in range(NUM_CLIPS)]
    fractions = [STATS.fractional_level(1 + clip / 4) for clip in range(NUM_CLIPS)]
    prefixes = [STATS.prefix(1 + clip / 4) for clip in range(NUM_CLIPS)]
    states = {text: text_state(text)[:, 0].tolist() for text in texts_of(shards)}
    batches = iter(EpochSampler(dataset.buckets(), batch_size=100, seed=0))
    for sample in (dataset[draw] for _ in range(100) for draw in next(batches)):
        clip = int(sample.id.removeprefix("clip-"))
        assert math.floor(sample.latents.min()) == math.floor(sample.latents.max()) == clip
        assert sample.quality_score == 1 + clip / 4
        assert sample.quality_level == levels[clip]
        assert abs(sample.frame_quality - fractions[clip]).max() < 1e-5
        assert sample.text.removeprefix(prefixes[clip]) in (f"song {clip}", f"music {clip}")
        assert sample.encoder_hidden_states[:, 0].tolist() == states[sample.text]


def test_the_score_of_a_crop_is_the_mean_of_its_own_frames(tmp_path, shards):
    curve = torch.linspace(1, 5, NUM_FRAMES)
    record = Record(id="rising", path="r.wav", duration_in_s=1.6, captions=("song 0",), quality_score=3.0)
    mean = torch.arange(NUM_FRAMES).float()[None, :, None].expand(2, -1, 3)
    write_latent_shard(shards, [record], [mean], [torch.zeros_like(mean)], [curve])
    dataset = make_dataset(shards, quality_dropout=0, clip_quality_dropout=0, frame_quality_dropout=0, text_dropout=0)
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


def test_short_clips_are_counted_and_too_long_crops_refused(shards):
    record = Record(id="short", path="s.wav", duration_in_s=0.4)
    mean = torch.zeros(2, 5, 3)
    write_latent_shard(shards, [record], [mean], [mean], [torch.full((5,), math.nan)])
    assert make_dataset(shards).num_short_clips == 1
    with pytest.raises(ValueError, match=r"`data.crop_in_frames` is 99, but the longest clip in .* has 20"):
        make_dataset(shards, crop_in_frames=99)


def test_a_clip_gives_crops_of_the_longest_length_that_fits(shards):
    for name, length in (("short", 10), ("shorter", 5)):
        mean = torch.zeros(2, length, 3)
        record = Record(id=name, path=f"{name}.wav", duration_in_s=1.0)
        write_latent_shard(shards, [record], [mean], [mean], [torch.full((length,), math.nan)])
    dataset = make_dataset(shards, crop_in_frames=[20, 8])
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


def test_damaged_shards_are_named(shards):
    first, second = list_shards(shards, "latents")
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match="latents-00001.safetensors is damaged"):
        LatentShards(shards)
    second.write_bytes(content)
    (shards / "records-00001.jsonl").write_text("")
    with pytest.raises(RuntimeError, match="holds 4 entries, but records-00001.jsonl has 0 lines"):
        LatentShards(shards)


def test_latents_that_are_not_finite_are_named(shards):
    mean = torch.full((2, 8, 3), math.inf)
    record = Record(id="broken", path="b.wav", duration_in_s=1.0)
    write_latent_shard(shards, [record], [mean], [torch.zeros_like(mean)], [torch.ones(8)])
    with pytest.raises(ValueError, match="clip 'broken' in .* has latents that are not finite"):
        LatentShards(shards).read(NUM_CLIPS, 0, 8)


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
