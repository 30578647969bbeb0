"""README's commands in a row, on six clips: what each one finds out arrives in the next, and nothing is done twice.

build -> encode -> train -> score -> stats -> label -> encode -> refine -> encode -> train
"""

import csv
import json
import re
import shutil

import pytest

import train_qamdt
from data_prep import build_manifest, encode_latents, label_quality, refine_captions
from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from qamdt.manifest import read_manifest
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset
from whisq import cli as whisq


NUM_CLIPS = 6
NO_DROPOUT = dict.fromkeys(
    ("text_dropout", "quality_dropout", "clip_quality_dropout", "frame_quality_dropout", "prefix_probability"), 0.0
)


@pytest.fixture
def music(tmp_path):
    """A folder of six clips, clean and damaged, and a table of weak captions."""
    folder = tmp_path / "music"
    folder.mkdir()
    names = [path.name for path in sorted((SAMPLE_CORPUS_DIR / "audio").glob("*.ogg"))[:NUM_CLIPS]]
    for name in names:
        shutil.copy2(SAMPLE_CORPUS_DIR / "audio" / name, folder / name)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        writer.writerows([name, f"some music, take {number}"] for number, name in enumerate(names))
    return folder


def run(command, *arguments):
    assert command.main([str(argument) for argument in arguments]) in (0, None)


def encode(manifest, capsys):
    """Encodes into the one folder that all steps share, and returns how many clips were kept and encoded anew."""
    capsys.readouterr()
    run(encode_latents, "--manifest", manifest)
    said = capsys.readouterr().out
    kept, encoded = re.match(r"clips: (\d+) kept, (\d+) encoded", said).groups()
    return int(kept), int(encoded)


def train(manifest, folder):
    overrides = ["run.max_steps=1", "run.batch_size=2", f"run.output_dir={folder}", "run.pipeline=null"]
    run(train_qamdt, "--config", "tiny", f"data.manifest={manifest}", *overrides)
    assert len((folder / "export" / "transformer" / "config.json").read_text()) > 0


def samples(folder):
    dataset = LatentDataset(DataConfig(latents=str(folder), crop_in_frames=64, **NO_DROPOUT), seed=0)
    return {sample.id: sample for sample in (dataset[0, number, 0] for number in range(len(dataset)))}


def test_what_a_step_finds_out_arrives_in_training(music, tmp_path, capsys, caplog):
    latents = music / "latents"
    manifest, labelled, refined = (music / f"{name}.jsonl" for name in ("manifest", "labelled", "refined"))
    scores, stats = tmp_path / "scores.jsonl", tmp_path / "stats.json"

    # From a folder of music to a first training, which knows nothing of quality.
    run(build_manifest, music, "--table", music / "captions.csv")
    assert encode(manifest, capsys) == (0, NUM_CLIPS)
    assert {sample.quality_level for sample in samples(latents).values()} == {0}
    train(manifest, tmp_path / "first")

    # Scores become labels, and labels levels, without encoding a clip again.
    run(whisq, "score", manifest, "-o", scores)
    run(whisq, "stats", scores, "-o", stats)
    run(label_quality, "--manifest", manifest, "--scores", scores, "--stats", stats, "--out", labelled)
    assert encode(labelled, capsys) == (NUM_CLIPS, 0)
    levels = {sample.id: sample.quality_level for sample in samples(latents).values()}
    assert min(levels.values()) >= 1
    found = {record.id: record.quality_score for record in read_manifest(labelled)}
    best, worst = max(found, key=found.get), min(found, key=found.get)
    assert levels[best] > levels[worst]

    # Refined captions become the samples' texts, and the labels stay.
    run(refine_captions, "--manifest", labelled, "--out", refined)
    texts = {record.id: set(record.captions) for record in read_manifest(refined)}
    weak = {record.id: set(record.captions) for record in read_manifest(labelled)}
    assert any(texts[name] - weak[name] for name in texts)
    assert encode(refined, capsys)[1] == 0
    told = samples(latents)
    assert all(sample.text in texts[name] for name, sample in told.items())
    assert {name: sample.quality_level for name, sample in told.items()} == {name: levels[name] for name in told}

    # The second training reads just that, without encoding anything.
    caplog.clear()
    train(refined, tmp_path / "second")
    assert f"clips: {NUM_CLIPS} kept, 0 encoded" in caplog.text
    index = json.loads((latents / "index.json").read_text())
    assert index["manifest"]["path"].endswith("refined.jsonl")


def test_scoring_and_encoding_again_do_nothing(music, tmp_path, capsys):
    manifest, scores = music / "manifest.jsonl", tmp_path / "scores.jsonl"
    run(build_manifest, music, "--table", music / "captions.csv")
    encode(manifest, capsys)
    run(whisq, "score", manifest, "-o", scores)
    before = scores.read_bytes()
    assert encode(manifest, capsys) == (NUM_CLIPS, 0)
    run(whisq, "score", manifest, "-o", scores)
    assert scores.read_bytes() == before
