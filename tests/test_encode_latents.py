import dataclasses
import json
import math

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from data_prep import latent_units, latent_update
from data_prep.encode_latents import main
from data_prep.latent_index import choose_stats, list_training_texts, resample_scores
from qamdt.audio import LogMel, normalize_waveform, read_audio, write_audio
from qamdt.latent_folder import LatentReader, TextReader, open_folder, read_texts
from qamdt.manifest import Record, read_manifest, write_manifest
from qamdt.quality import QualityStats
from qamdt.shards import list_shards
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset
from tests.tiny_autoencoders import build_fast_autoencoder_waveform


STATS = QualityStats(mean=3, std=1, edges=(2, 2.5, 3, 4), prefix_edges=(2.2, 3.8), scorer="test", num_clips=7)


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "corpus").mkdir()
    records = []
    for i in range(7):
        seconds = torch.arange(5120) / 16_000
        write_audio(tmp_path / "corpus" / f"{i}.wav", 0.4 * torch.sin(2 * math.pi * 100 * (i + 1) * seconds), 16_000)
        records.append(
            Record(
                id=f"clip-{i}",
                path=f"{i}.wav",
                duration_in_s=0.32,
                captions=(f"song {i}", f"another song {i}"),
                tags={"split": "test" if i == 6 else "train"},
                quality_score=1.5 + i / 2,
                quality_scorer="test",
            )
        )
    write_manifest(tmp_path / "corpus" / "manifest.jsonl", records)
    return tmp_path / "corpus" / "manifest.jsonl"


def run(manifest, encoders_dir, out, *options):
    return main(
        ["--manifest", str(manifest), "--vae", str(encoders_dir / "vae"), "--out", str(out)]
        + ["--text-encoder", str(encoders_dir / "text"), "--batch-size", "2", "--clips-per-shard", "2", *options]
    )


def test_latents_are_the_posterior_of_the_clip(manifest, encoders_dir, tmp_path):
    assert run(manifest, encoders_dir, tmp_path / "latents") == 0
    shards = LatentReader(tmp_path / "latents")
    index = open_folder(tmp_path / "latents").index
    assert (len(shards), index["num_clips"], index["num_latent_frames"]) == (7, 7, 56)
    vae = AutoencoderKL.from_pretrained(encoders_dir / "vae")
    means, stds = [], []
    for number, record in enumerate(shards.records):
        waveform = read_audio(manifest.parent / record.path)
        with torch.no_grad():
            posterior = vae.encode(LogMel()(normalize_waveform(waveform[None]))).latent_dist
        mean, std, curves = shards.read(number, 0, 8)
        torch.testing.assert_close(mean, posterior.mean[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(std, posterior.std[0], atol=2e-3, rtol=2e-3)
        assert curves["quality"].tolist() == [record.quality_score] * 8
        means.append(mean)
        stds.append(std)
    variance = torch.stack(means).var(correction=0) + torch.stack(stds).square().mean()
    assert index["scaling_factor"] == pytest.approx(1 / variance.sqrt().item(), rel=1e-3)


def test_an_autoencoder_of_waveforms_encodes_too(manifest, encoders_dir, tmp_path):
    autoencoder = build_fast_autoencoder_waveform()
    autoencoder.save_pretrained(tmp_path / "vae")
    assert run(manifest, encoders_dir, tmp_path / "latents", "--vae", str(tmp_path / "vae")) == 0
    index = open_folder(tmp_path / "latents").index
    assert (index["latent_frames_per_second"], index["latent_channels"], index["latent_bins"]) == (25.0, 2, 1)
    shards = LatentReader(tmp_path / "latents")
    with torch.no_grad():
        expected = autoencoder.encode(
            normalize_waveform(read_audio(manifest.parent / "3.wav"))[None]
        ).latent_dist.mean[0]
    torch.testing.assert_close(shards.read(3, 0, 8)[0], expected, atol=2e-3, rtol=2e-3)


def test_the_data_set_finds_every_text_that_it_draws(manifest, encoders_dir, tmp_path):
    run(manifest, encoders_dir, tmp_path / "latents")
    dataset = LatentDataset(
        DataConfig(latents=str(tmp_path / "latents"), crop_in_frames=4, scaling_factor=1.0), seed=0
    )
    drawn = {dataset[epoch, number, 0].text for epoch in range(60) for number in range(len(dataset))}
    assert drawn == set(read_texts(open_folder(tmp_path / "latents")))


def test_a_killed_run_is_completed_and_equals_an_unbroken_one(manifest, encoders_dir, tmp_path, monkeypatch):
    run(manifest, encoders_dir, tmp_path / "unbroken")
    write_shard = latent_units.write_latent_shard
    monkeypatch.setattr(latent_units, "write_latent_shard", interrupted_after(2, write_shard))
    with pytest.raises(KeyboardInterrupt):
        run(manifest, encoders_dir, tmp_path / "latents")
    (tmp_path / "latents" / ".latents-00002-0123.safetensors.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(latent_units, "write_latent_shard", write_shard)
    for module, name in ((latent_units, "write_text_shard"), (latent_update, "write_index")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, interrupted_after(0, function))
        with pytest.raises(KeyboardInterrupt):
            run(manifest, encoders_dir, tmp_path / "latents")
        monkeypatch.setattr(module, name, function)
    assert run(manifest, encoders_dir, tmp_path / "latents") == 0

    names = {path.name for path in (tmp_path / "unbroken").iterdir()}
    assert {path.name for path in (tmp_path / "latents").iterdir()} == names
    for name in names:
        completed, unbroken = tmp_path / "latents" / name, tmp_path / "unbroken" / name
        if completed.suffix == ".safetensors":
            expected = load_file(unbroken)
            assert all(torch.equal(tensor, expected.pop(key)) for key, tensor in load_file(completed).items())
            assert not expected
        else:
            assert completed.read_bytes() == unbroken.read_bytes(), name


def interrupted_after(num_calls, function):
    calls = iter(range(num_calls))

    def interrupted(*arguments, **options):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return interrupted


def test_bad_clips_are_counted_listed_and_tried_again(manifest, encoders_dir, tmp_path, capsys):
    good = (manifest.parent / "3.wav").read_bytes()
    (manifest.parent / "3.wav").write_bytes(b"this is no sound")
    write_audio(manifest.parent / "5.wav", torch.zeros(300), 16_000)
    assert run(manifest, encoders_dir, tmp_path / "latents") == 1
    assert "2 bad clips, listed in" in capsys.readouterr().err
    listed = [json.loads(line) for line in (tmp_path / "latents" / "bad_clips.jsonl").read_text().splitlines()]
    assert [clip["id"] for clip in listed] == ["clip-3", "clip-5"]
    assert "its file ends 0.30 s before the clip should" in listed[1]["error"]

    (manifest.parent / "3.wav").write_bytes(good)
    assert run(manifest, encoders_dir, tmp_path / "latents") == 1
    assert {record.id for record in LatentReader(tmp_path / "latents").records} == {f"clip-{i}" for i in range(7)} - {
        "clip-5"
    }


def test_scores_that_hardly_differ_leave_the_quality_unknown(manifest, caplog):
    records = [dataclasses.replace(record, quality_score=4.5) for record in read_manifest(manifest)]
    with caplog.at_level("WARNING"):
        assert choose_stats(records, manifest, None, None) is None
    assert "1 distinct quality scores are too few to set 5 levels apart" in caplog.text


def test_a_split_can_be_chosen(manifest, encoders_dir, tmp_path, capsys):
    assert run(manifest, encoders_dir, tmp_path / "latents", "--split", "train") == 0
    assert len(LatentReader(tmp_path / "latents")) == 6
    assert run(manifest, encoders_dir, tmp_path / "other", "--split", "valid") == 2
    assert "no clip of" in capsys.readouterr().err


def test_texts_cover_the_prefixes_of_every_crop():
    curve = (2.0, 2.4, 4.5)
    record = Record(
        id="a",
        path="a",
        duration_in_s=3,
        captions=("song",),
        quality_score=3,
        quality_frames=curve,
        quality_frame_rate=1,
    )
    texts = set(list_training_texts(record, STATS, None))
    assert texts == {"", "song", "low quality, song", "medium quality, song", "high quality, song"}
    steady = Record(id="b", path="b", duration_in_s=3, captions=("song", "tune"), quality_score=4.0)
    assert set(list_training_texts(steady, STATS, 1)) == {"", "song", "high quality, song"}
    unrated = Record(id="c", path="c", duration_in_s=3, captions=("song",))
    assert set(list_training_texts(unrated, STATS, None)) == {"", "song"}


def test_a_curve_is_read_at_the_centres_of_latent_frames():
    record = Record(id="a", path="a", duration_in_s=4.0, quality_frames=(1, 2, 3, 4), quality_frame_rate=1)
    assert resample_scores(record, 4).tolist() == [1, 2, 3, 4]
    assert resample_scores(record, 2).tolist() == [1.5, 3.5]
    assert resample_scores(record, 8).tolist() == [1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]
    assert resample_scores(Record(id="b", path="b", duration_in_s=1, quality_score=2.5), 2).tolist() == [2.5, 2.5]


def test_texts_are_cached_without_their_padding(manifest, encoders_dir, tmp_path):
    run(manifest, encoders_dir, tmp_path / "latents")
    texts = TextReader(tmp_path / "latents")
    assert texts.read("").shape == (2, 8)
    assert texts.read("song 1").shape == (4, 8)
    assert len(list_shards(tmp_path / "latents", "text")) == 1
    with pytest.raises(ValueError, match="has no cached states"):
        texts.read("unheard of")


def test_what_is_encoded_is_kept_once_a_minute(manifest, encoders_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_units, "MOST_SECONDS_PER_SHARD", 0.0)
    arguments = ["--clips-per-shard", "512"]
    run(manifest, encoders_dir, tmp_path / "unbroken", *arguments)
    encode = latent_units.encode_waveforms
    monkeypatch.setattr(latent_units, "encode_waveforms", interrupted_after(3, encode))
    with pytest.raises(KeyboardInterrupt):
        run(manifest, encoders_dir, tmp_path / "latents", *arguments)
    assert len(list((tmp_path / "latents").glob("unfinished-latents-*"))) == 1
    told = []
    monkeypatch.setattr(latent_units, "encode_waveforms", lambda *given: told.append(1) or encode(*given))
    run(manifest, encoders_dir, tmp_path / "latents", *arguments)
    assert len(told) == 1  # of four batches three were kept
    assert read_folder(tmp_path / "latents") == read_folder(tmp_path / "unbroken")


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
