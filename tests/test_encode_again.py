"""What a second run of the encoder keeps, and what it does again: exactly what depends on something that changed."""

import dataclasses
import itertools
import json
import math
import re

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import BertModel, BertTokenizerFast

from data_prep.encode_latents import main
from data_prep.training_latents import find_latents
from qamdt.audio import write_audio
from qamdt.files import claim, write_json, write_json_lines
from qamdt.latent_folder import LatentReader, find_unnamed_files, iterate_clips, open_folder
from qamdt.manifest import Record, read_manifest, write_manifest
from qamdt.quality import QualityStats
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset


NUM_CLIPS = 6
SCORES = (1.4, 2.1, 2.9, 3.3, 4.0, 4.8)


@pytest.fixture
def corpus(tmp_path):
    """Six clips of a third of a second without scores."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(NUM_CLIPS):
        write_sound(folder / f"{i}.wav", 100 * (i + 1))
    records = [
        Record(id=f"clip-{i}", path=f"{i}.wav", duration_in_s=0.32, captions=(f"song {i}",)) for i in range(NUM_CLIPS)
    ]
    write_manifest(folder / "manifest.jsonl", records)
    return folder


def write_sound(path, frequency):
    seconds = torch.arange(8000) / 16_000
    write_audio(path, 0.4 * torch.sin(2 * math.pi * frequency * seconds), 16_000)


def rewrite(corpus, change, source="manifest.jsonl", target="manifest.jsonl"):
    """Writes a manifest whose records are `change(number, record)` of another's."""
    records = [change(number, record) for number, record in enumerate(read_manifest(corpus / source))]
    write_manifest(corpus / target, [record for record in records if record is not None])


def rated(score_of, scorer="panel"):
    return lambda i, record: dataclasses.replace(
        record,
        quality_score=score_of(i),
        quality_frames=(score_of(i), score_of(i)),
        quality_frame_rate=6.25,
        quality_scorer=scorer,
    )


@pytest.fixture
def encode(corpus, encoders_dir, capsys):
    """Runs the command and returns how many clips were kept, encoded and dropped, and texts kept and encoded."""

    def run(*options, manifest="manifest.jsonl", vae=encoders_dir / "vae", text=encoders_dir / "text", status=0):
        arguments = ["--manifest", str(corpus / manifest), "--vae", str(vae), "--text-encoder", str(text)]
        assert main([*arguments, "--batch-size", "2", "--clips-per-shard", "4", *options]) == status
        counts = re.search(
            r"clips: (\d+) kept, (\d+) encoded, (\d+) dropped .* (\d+) kept, (\d+) enc", capsys.readouterr().out
        )
        return tuple(map(int, counts.groups()))

    return run


def open_dataset(corpus, **changes):
    settings = {"crop_in_frames": 8, "scaling_factor": 1.0, "text_dropout": 0.0, "quality_dropout": 0.0}
    settings |= {"clip_quality_dropout": 0.0, "prefix_probability": 0.0} | changes
    return LatentDataset(DataConfig(latents=str(corpus / "latents"), **settings), seed=0)


def latents_of(corpus):
    reader = LatentReader(corpus / "latents")
    return {record.id: reader.read(number, 0, 8)[0] for number, record in enumerate(reader.records)}


def test_the_same_manifest_again_encodes_nothing_and_changes_no_file(corpus, encode):
    assert encode() == (0, 6, 0, 0, 7)
    content = {path.name: path.read_bytes() for path in (corpus / "latents").iterdir()}
    assert encode() == (6, 0, 0, 7, 0)
    assert {path.name: path.read_bytes() for path in (corpus / "latents").iterdir()} == content


def test_labels_arrive_in_latents_that_were_encoded_without_them(corpus, encode):
    encode()
    assert open_dataset(corpus)[0, 0, 0].quality_level == 0
    rewrite(corpus, rated(SCORES.__getitem__), target="labelled.jsonl")
    assert encode(manifest="labelled.jsonl")[:3] == (6, 0, 0)
    dataset = open_dataset(corpus)
    levels = [dataset.stats.level(score) for score in SCORES]
    assert [dataset[0, i, 0].quality_level for i in range(NUM_CLIPS)] == levels
    assert len(set(levels)) >= 3


def test_refined_captions_are_what_a_sample_says(corpus, encode):
    encode()
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=(f"low song {i}",)) if i < 2 else r)
    assert encode() == (6, 0, 0, 5, 2)
    dataset = open_dataset(corpus)
    texts = [dataset[0, i, 0].text for i in range(NUM_CLIPS)]
    assert texts == ["low song 0", "low song 1", "song 2", "song 3", "song 4", "song 5"]
    torch.testing.assert_close(dataset[0, 0, 0].encoder_hidden_states, dataset.texts.read("low song 0"))


def test_music_that_is_scored_again_and_again_has_every_text_that_training_draws(corpus, encode):
    encode()
    for turn in range(3):
        rewrite(corpus, rated(lambda i, turn=turn: SCORES[(i + 2 * turn) % NUM_CLIPS]))
        assert encode()[:3] == (6, 0, 0)
        dataset = open_dataset(corpus, prefix_probability=0.5)
        for epoch, number in itertools.product(range(20), range(NUM_CLIPS)):
            sample = dataset[epoch, number, 0]
            assert sample.quality_level == dataset.stats.level(SCORES[(number + 2 * turn) % NUM_CLIPS])


@pytest.mark.parametrize("change", ["sound", "start", "duration"])
def test_a_clip_whose_sound_or_span_changed_is_encoded_again_and_no_other(corpus, encode, change):
    encode()
    before = latents_of(corpus)
    if change == "sound":
        write_sound(corpus / "2.wav", 2500)
    spans = {"sound": {}, "start": {"start_in_s": 0.1}, "duration": {"duration_in_s": 0.4}}
    rewrite(corpus, lambda i, r: dataclasses.replace(r, **spans[change]) if i == 2 else r)
    assert encode() == (5, 1, 0, 7, 0)
    after = latents_of(corpus)
    encode("--out", str(corpus / "fresh"))
    fresh = LatentReader(corpus / "fresh")
    for number, record in enumerate(fresh.records):
        torch.testing.assert_close(after[record.id], fresh.read(number, 0, 8)[0], atol=2e-3, rtol=2e-3)
        assert torch.equal(after[record.id], before[record.id]) == (number != 2)


def test_two_autoencoders_and_text_encoders_lie_side_by_side(corpus, encode, encoders_dir, tmp_path):
    encode()
    before = latents_of(corpus)
    vae = AutoencoderKL.from_pretrained(encoders_dir / "vae")
    torch.nn.init.zeros_(vae.quant_conv.weight)
    vae.save_pretrained(tmp_path / "vae")
    text_encoder = BertModel.from_pretrained(encoders_dir / "text")
    torch.nn.init.normal_(text_encoder.embeddings.word_embeddings.weight)
    text_encoder.save_pretrained(tmp_path / "text")
    BertTokenizerFast.from_pretrained(encoders_dir / "text").save_pretrained(tmp_path / "text")
    states = open_dataset(corpus).texts.read("song 1")

    assert encode(vae=tmp_path / "vae") == (0, 6, 0, 7, 0)
    assert not torch.equal(latents_of(corpus)["clip-0"], before["clip-0"])
    assert encode(vae=tmp_path / "vae", text=tmp_path / "text") == (6, 0, 0, 0, 7)
    assert not torch.equal(open_dataset(corpus).texts.read("song 1"), states)
    assert encode("--dtype", "bfloat16") == (0, 6, 0, 7, 0)
    assert encode() == (6, 0, 0, 7, 0)
    assert all(torch.equal(mean, before[name]) for name, mean in latents_of(corpus).items())
    assert torch.equal(open_dataset(corpus).texts.read("song 1"), states)


def test_clips_that_a_manifest_lacks_are_dropped_from_the_index_and_come_back(corpus, encode):
    encode()
    rewrite(corpus, lambda i, r: None if i < 4 else r, target="less.jsonl")
    assert encode(manifest="less.jsonl") == (2, 0, 4, 3, 0)
    assert sorted(latents_of(corpus)) == ["clip-4", "clip-5"]
    assert encode() == (6, 0, 0, 7, 0)
    assert encode("--clean", manifest="less.jsonl") == (2, 0, 4, 3, 0)
    assert find_unnamed_files(corpus / "latents") == []
    assert encode() == (2, 4, 0, 7, 0)  # the shard of the other four was removed


def test_clips_of_the_same_sound_share_latents_and_nothing_else(corpus, encode):
    rewrite(corpus, rated(SCORES.__getitem__))
    rewrite(corpus, lambda i, r: dataclasses.replace(r, path="0.wav"))
    assert encode()[:3] == (0, 6, 0)
    assert len({place for _, place in iterate_clips(open_folder(corpus / "latents"))}) == 1
    samples = [open_dataset(corpus)[0, i, 0] for i in range(NUM_CLIPS)]
    assert [sample.quality_score for sample in samples] == pytest.approx(SCORES)
    assert [sample.text for sample in samples] == [f"song {i}" for i in range(NUM_CLIPS)]


def test_latents_of_sound_that_is_gone_are_kept_with_what_is_said_now(corpus, encode):
    encode()
    (corpus / "1.wav").unlink()
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=("high song",)))
    assert encode()[:3] == (6, 0, 0)
    assert open_dataset(corpus)[0, 1, 0].text == "high song"
    rewrite(corpus, lambda i, r: dataclasses.replace(r, start_in_s=0.05))
    assert encode(status=1)[:3] == (0, 5, 1)
    (bad_clip,) = map(json.loads, (corpus / "latents" / "bad_clips.jsonl").read_text().splitlines())
    assert (bad_clip["id"], "there is no file" in bad_clip["error"]) == ("clip-1", True)


def test_a_second_process_on_the_folder_is_refused(corpus, encoders_dir, encode, capsys):
    encode()
    with claim(corpus / "latents" / ".lock"):
        assert main(["--manifest", str(corpus / "manifest.jsonl"), "--vae", str(encoders_dir / "vae")]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert encode() == (6, 0, 0, 7, 0)


# Thresholds.


def label(corpus, stats, target="labelled.jsonl"):
    """Writes scores and labels into a manifest as `label_quality` does, and the thresholds beside it."""
    rewrite(corpus, rated(SCORES.__getitem__), target=target)
    rewrite(
        corpus,
        lambda i, r: dataclasses.replace(r, extra={"quality_level": stats.level(SCORES[i])}),
        source=target,
        target=target,
    )
    stats.save(corpus / "labelled.quality.json")


STATS = QualityStats(mean=3, std=1, edges=(2, 3, 4, 4.5), prefix_edges=(2.5, 4.2), scorer="panel", num_clips=9)


def test_thresholds_are_those_of_the_labels(corpus, encode, capsys):
    label(corpus, STATS)
    encode(manifest="labelled.jsonl")
    assert open_dataset(corpus).stats == STATS

    # A manifest that came of the labelled one has the same labels, and no thresholds beside it.
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=("song",)), "labelled.jsonl", "refined.jsonl")
    encode(manifest="refined.jsonl")
    assert open_dataset(corpus).stats == STATS
    arguments = ["--manifest", str(corpus / "refined.jsonl"), "--out", str(corpus / "other")]
    assert main(arguments) == 2
    assert "is labelled with `quality_level`" in capsys.readouterr().err
    encode(
        "--quality-stats",
        str(corpus / "labelled.quality.json"),
        "--out",
        str(corpus / "other"),
        manifest="refined.jsonl",
    )

    # Thresholds of another labelling contradict the labels, and so do not count.
    other = dataclasses.replace(STATS, edges=(1.5, 1.6, 1.7, 1.8))
    label(corpus, other)
    encode(manifest="labelled.jsonl")
    assert open_dataset(corpus).stats == other


# What training reads.


def test_training_reads_the_manifest_that_it_names_as_the_folder_was_encoded_before(corpus, encode, caplog):
    caplog.set_level("INFO", logger="data_prep")
    rewrite(corpus, lambda i, r: dataclasses.replace(r, tags={"split": "test" if i == 5 else "train"}))
    encode("--split", "train")
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=("high song",)), target="refined.jsonl")
    assert find_latents(str(corpus / "refined.jsonl"), None) == str(corpus / "latents")
    assert "clips: 5 kept, 0 encoded, 0 dropped" in caplog.text
    assert {open_dataset(corpus)[0, i, 0].text for i in range(5)} == {"high song"}
    assert find_latents(str(corpus / "manifest.jsonl"), str(corpus / "latents")) == str(corpus / "latents")
    assert [record.captions for record in open_dataset(corpus).latents.records] == [(f"song {i}",) for i in range(5)]


def test_latents_behind_a_url_must_be_those_of_the_manifest(corpus, encode):
    encode()
    url = f"file://{corpus / 'latents'}"
    assert find_latents(str(corpus / "manifest.jsonl"), url) == url
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=("high song",)))
    with pytest.raises(ValueError, match="was made from another `data.manifest` than .*upload its folder again"):
        find_latents(str(corpus / "manifest.jsonl"), url)


def test_latents_without_a_manifest_are_read_as_they_are_and_a_changed_one_is_named(corpus, encode, caplog):
    encode()
    folder = str(corpus / "latents")
    assert find_latents(None, folder) == folder
    assert caplog.text == ""
    rewrite(corpus, lambda i, r: dataclasses.replace(r, captions=("high song",)))
    assert find_latents(None, folder) == folder
    assert f"manifest.jsonl has changed since {folder} was made from it" in caplog.text
    with pytest.raises(ValueError, match="`data.manifest` or `data.latents` must say what to train on"):
        find_latents(None, None)


# Folders of an earlier version.


def write_format_1(corpus, vae_sha256, text_encoder="embedded"):
    """Turns the folder of encoded music into what an earlier version would have written."""
    folder = corpus / "latents"
    records = [record for record, _ in iterate_clips(open_folder(folder))]
    for number, path in enumerate(sorted(folder.glob("latents-*"))):
        tensors = load_file(path)
        some = records[4 * number :][: len(tensors["keys"])]
        old = {name: tensors[name] for name in ("mean", "std", "offsets")}
        save_file(
            old | {"quality": torch.full((len(old["mean"]),), 3.0)}, folder / f"latents-{number:05d}.safetensors"
        )
        write_manifest(folder / f"records-{number:05d}.jsonl", some)
        path.unlink()
    (states,) = folder.glob("text-*")
    tensors = load_file(states)
    save_file({name: tensors[name] for name in ("hidden_states", "offsets")}, folder / "text-00000.safetensors")
    write_json_lines(folder / "texts-00000.jsonl", [f"text {i}" for i in range(len(tensors["keys"]))])
    for path in [states, *folder.glob("clips-*"), *folder.glob("texts-*-*"), *folder.glob("curves-*")]:
        path.unlink(missing_ok=True)
    write_json(folder / "settings.json", {"vae_sha256": vae_sha256, "text_encoder": text_encoder})
    write_json(folder / "index.json", {"format": 1, "num_clips": len(records)})


def test_a_folder_of_the_format_before_is_refused_by_readers_and_taken_over_by_the_encoder(corpus, encode):
    encode()
    latents, vae_sha256 = latents_of(corpus), open_folder(corpus / "latents").index["vae_sha256"]
    write_format_1(corpus, vae_sha256)
    with pytest.raises(ValueError, match=r"has format 1, .*which takes over latents of format 1 without encoding"):
        find_latents(str(corpus / "manifest.jsonl"), None)
    assert encode()[:3] == (6, 0, 0)
    assert all(torch.equal(mean, latents[name]) for name, mean in latents_of(corpus).items())
    names = {path.name for path in (corpus / "latents").iterdir()}
    assert not {"settings.json", "latents-00000.safetensors", "records-00000.jsonl"} & names
    assert encode()[:3] == (6, 0, 0)


def test_old_latents_of_sound_that_changed_since_or_of_another_precision_are_not_taken_over(corpus, encode):
    encode()
    vae_sha256 = open_folder(corpus / "latents").index["vae_sha256"]
    write_format_1(corpus, vae_sha256)
    write_sound(corpus / "3.wav", 2500)
    assert encode("--dtype", "bfloat16")[:3] == (0, 6, 0)
    assert encode()[:3] == (5, 1, 0)
