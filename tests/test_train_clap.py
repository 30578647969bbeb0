import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch

from whisq.modeling_clap import MiniClap
from whisq.train_clap import ClapLoss, main
from whisq.training import clap_data
from whisq.training.clap_data import ClapDataset


CAPTIONS = {300.0: ["a deep hum"], 3000.0: ["a bright whistle"]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eight one-second tones; each pitch has its caption, and the second half of odd clips is bad."""
    folder = tmp_path_factory.mktemp("tones")
    time = np.arange(16_000) / 16_000
    rows = []
    for index in range(8):
        pitch = list(CAPTIONS)[index % 2]
        soundfile.write(folder / f"{index}.wav", 0.3 * np.sin(2 * np.pi * pitch * (1 + index / 50) * time), 16_000)
        frames = [5.0] * 6 + [2.0 if index % 2 else 5.0] * 6
        rows.append(
            {"id": str(index), "path": f"{index}.wav", "duration_in_s": 1.0, "captions": CAPTIONS[pitch]}
            | {"quality_score": 4.0, "quality_frames": frames, "quality_frame_rate": 12.0, "tags": {"split": "train"}}
        )
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_batch_holds_what_belongs_together(manifest, tmp_path):
    dataset = ClapDataset([manifest], tmp_path, clip_in_s=0.96)
    batch = next(dataset.batches(8, 0.8, seed=0))
    assert batch.mel_spectrogram.shape == (8, 80, 64)
    assert batch.quality.shape == (8, 10)
    assert batch.has_caption.all()
    # Two texts, and clips with the same text form a group.
    same_text = (batch.sentence_embeddings @ batch.sentence_embeddings.T) > 0.99
    assert (same_text == (batch.group[:, None] == batch.group[None])).all()
    # A low tone is loud in a low band, and its quality stays; the others get worse.
    is_low = batch.mel_spectrogram.mean(dim=1).argmax(dim=1) < 32
    assert (batch.quality[is_low] == 5.0).all()
    assert (batch.quality[~is_low][:, -1] < 3.0).all()
    assert (batch.quality[~is_low][:, 0] > 4.0).all()


def test_batches_depend_on_seed_and_number_alone(manifest, tmp_path):
    dataset = ClapDataset([manifest], tmp_path, clip_in_s=0.96)
    straight = dataset.batches(4, 0.8, seed=0)
    next(straight)
    resumed = ClapDataset([manifest], tmp_path, clip_in_s=0.96).batches(4, 0.8, seed=0, first_step=1)
    torch.testing.assert_close(next(straight).mel_spectrogram, next(resumed).mel_spectrogram)
    other = dataset.batches(4, 0.8, seed=1, first_step=1)
    assert not torch.equal(next(other).mel_spectrogram, next(dataset.batches(4, 0.8, seed=0)).mel_spectrogram)


def test_what_has_changed_of_clips_and_captions_is_computed_again(manifest, tmp_path, monkeypatch):
    folder = shutil.copytree(manifest.parent, tmp_path / "tones")
    ClapDataset([folder / "manifest.jsonl"], tmp_path / "cache", clip_in_s=0.96)
    read, encoded = [], []
    read_audio, encode = clap_data.read_audio, clap_data.sentence_embeddings
    monkeypatch.setattr(
        clap_data, "read_audio", lambda path, **span: read.append(path.name) or read_audio(path, **span)
    )
    monkeypatch.setattr(clap_data, "sentence_embeddings", lambda texts: encoded.extend(texts) or encode(texts))

    # Other captions in the same file: the old table of embeddings would give each clip another one's.
    text = (folder / "manifest.jsonl").read_text()
    (folder / "manifest.jsonl").write_text(text.replace("a deep hum", "some low drone"))
    dataset = ClapDataset([folder / "manifest.jsonl"], tmp_path / "cache", clip_in_s=0.96)
    for number, clip in enumerate(dataset.clips):
        batch = dataset._batch(np.array([number]), 80, np.random.default_rng(0))
        torch.testing.assert_close(batch.sentence_embeddings, encode([*clip.record.captions]), atol=1e-3, rtol=0)
    assert (read, encoded) == ([], ["some low drone"])

    # Another sound under the same name.
    soundfile.write(folder / "3.wav", 0.1 * np.random.default_rng(0).normal(size=16_000), 16_000)
    dataset = ClapDataset([folder / "manifest.jsonl"], tmp_path / "cache", clip_in_s=0.96)
    assert (read, encoded) == (["3.wav"], ["some low drone"])
    fresh = ClapDataset([folder / "manifest.jsonl"], tmp_path / "other cache", clip_in_s=0.96)
    np.testing.assert_array_equal(dataset.mel_spectrograms, fresh.mel_spectrograms)


def test_perfect_embeddings_leave_almost_no_contrastive_loss():
    loss = ClapLoss(MiniClap(channels=(4, 4, 4), hidden_size=8, num_layers=1), quality_weight=1.0, bf16=False)
    loss.clap.logit_scale.data.fill_(4.6)
    vectors, group = torch.eye(4)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 2])
    value, accuracy = loss._contrastive(vectors, vectors, group)
    # The two clips of one group share the probability, half each.
    assert value.item() == pytest.approx(math.log(2) / 2, abs=1e-3)
    assert accuracy == 1.0
    assert loss._contrastive(vectors, vectors.flip(0), group)[0] > 10


def test_training_resumes_to_the_same_weights(manifest, tmp_path, monkeypatch):
    def train(folder, *extra):
        main(
            ["--manifest", str(manifest), "--output-dir", str(tmp_path / folder), "--num-steps", "4"]
            + ["--batch-size", "4", "--crop-in-s", "0.64", *extra]
        )
        return MiniClap.from_pretrained(tmp_path / folder / "clap").state_dict()

    straight = train("straight")
    train("resumed", "--max-minutes", "0")  # stops after its first step
    resumed = train("resumed")
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=0)
    losses = [json.loads(line) for line in (tmp_path / "straight" / "losses.jsonl").read_text().splitlines()]
    assert {"loss", "contrastive", "quality_error", "accuracy"} <= losses[0].keys()


def test_a_run_is_resumed_with_its_own_settings_and_music_only(manifest, tmp_path, capsys):
    folder = shutil.copytree(manifest.parent, tmp_path / "tones")

    def train(*extra):
        command = ["--manifest", str(folder / "manifest.jsonl"), "--output-dir", str(tmp_path / "run")]
        return main([*command, "--num-steps", "2", "--batch-size", "4", "--crop-in-s", "0.64", *extra])

    assert train("--max-minutes", "0") == 0
    assert train("--learning-rate", "0.5") == 2
    assert "`learning_rate` was 0.001 and is now 0.5" in capsys.readouterr().err
    text = (folder / "manifest.jsonl").read_text()
    (folder / "manifest.jsonl").write_text(text.replace("a deep hum", "some low drone"))
    assert train() == 2
    assert "`music` was" in capsys.readouterr().err
    (folder / "manifest.jsonl").write_text(text)
    assert train("--num-steps", "3") == 0
    assert "`num_steps` was 2 and is now 3" in capsys.readouterr().err
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


def test_clips_that_cannot_be_read_are_listed_and_the_others_learnt_from(manifest, tmp_path, capsys):
    folder = shutil.copytree(manifest.parent, tmp_path / "tones")
    (folder / "2.wav").write_bytes(b"this is no sound")
    command = ["--manifest", str(folder / "manifest.jsonl"), "--output-dir", str(tmp_path / "run")]
    for _ in range(2):  # the second time the others are in the cache
        assert main([*command, "--num-steps", "1", "--batch-size", "8", "--crop-in-s", "0.64"]) == 1
        assert "1 clips cannot be used" in capsys.readouterr().err
        (fault,) = (json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines())
        assert fault["file"].endswith("2.wav")
    dataset = ClapDataset([folder / "manifest.jsonl"], tmp_path / "run" / "cache")
    assert [clip.record.id for clip in dataset.clips] == ["0", "1", "3", "4", "5", "6", "7"]
    assert len(dataset.mel_spectrograms) == 7
