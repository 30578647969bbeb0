import json
import math

import numpy as np
import pytest
import soundfile
import torch

from whisq.clap_data import ClapDataset
from whisq.modeling_clap import MiniClap
from whisq.train_clap import ClapLoss, main


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
