import json
import os

import pytest
import soundfile
import torch

from whisq.audio import level
from whisq.encoders import fingerprint
from whisq.modeling_audio_tower import AudioTower
from whisq.ratings import RatedClip
from whisq.training import features
from whisq.training.features import FeatureStore, cache_clips, cache_texts, clip_key


SETTINGS = {"encoder": "tower", "hidden_size": 8}


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return AudioTower(channels=(2, 2, 4), hidden_size=8, num_layers=1).eval()


@pytest.fixture
def clips(tmp_path):
    """Five clips of 0.2 to 0.6 s."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(5):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * torch.randn(3200 + 1600 * i, generator=generator).numpy(), 16_000)
        made.append(RatedClip(id=f"clip-{i}", path=path, system="S1", overall_quality=3.0))
    return made


def fill(folder, tower, clips, **options):
    store = FeatureStore(folder, SETTINGS, process_index=options.pop("process_index", 0))
    faults = cache_clips(store, tower, clips, max_seconds=30.0, batch_size=2, clips_per_shard=2, **options)
    return store, faults


def test_cached_states_are_what_the_encoder_says_of_the_clip_alone(tmp_path, tower, clips):
    store, faults = fill(tmp_path / "store", tower, clips)
    assert (len(store), faults) == (5, [])
    for clip in clips:
        samples = level(torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0]))
        expected, mask = tower.encode(samples[None], torch.tensor([len(samples)]))
        states = store.read(clip_key(clip, 30.0))
        assert states.dtype == torch.float16
        assert len(states) == mask.sum() == store.num_tokens(clip_key(clip, 30.0))
        torch.testing.assert_close(states.float(), expected[0, mask[0]], atol=2e-3, rtol=2e-3)


def test_a_killed_run_is_completed_without_encoding_anything_twice(tmp_path, tower, clips, monkeypatch):
    write = features.write_tensors
    calls = []

    def write_once(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(write(*arguments))

    monkeypatch.setattr(features, "write_tensors", write_once)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "store", tower, clips)
    monkeypatch.setattr(features, "write_tensors", write)
    encoded = []
    encode = tower.encode
    monkeypatch.setattr(
        tower, "encode", lambda waveforms, lengths: encoded.append(len(lengths)) or encode(waveforms, lengths)
    )
    store, _ = fill(tmp_path / "store", tower, clips)
    assert (len(store), sum(encoded)) == (5, 3)
    assert not list((tmp_path / "store").glob(".*"))
    fill(tmp_path / "store", tower, clips)
    assert sum(encoded) == 3


def test_a_changed_file_is_encoded_again(tmp_path, tower, clips):
    store, _ = fill(tmp_path / "store", tower, clips)
    before = store.read(clip_key(clips[0], 30.0))
    soundfile.write(clips[0].path, 0.5 * torch.ones(3200).numpy(), 16_000)
    os.utime(clips[0].path, ns=(1, 1))
    store, _ = fill(tmp_path / "store", tower, clips)
    assert len(store) == 6
    assert not torch.equal(store.read(clip_key(clips[0], 30.0)), before)


def test_clips_that_cannot_be_read_are_listed_and_the_rest_is_encoded(tmp_path, tower, clips):
    clips[1].path.write_bytes(b"this is no sound")
    clips[3].path.unlink()
    soundfile.write(clips[4].path, torch.zeros(0).numpy(), 16_000)
    store, faults = fill(tmp_path / "store", tower, clips)
    assert len(store) == 2
    assert [fault.file for fault in faults] == [str(clips[i].path) for i in (1, 3, 4)]


def test_processes_share_the_clips(tmp_path, tower, clips):
    for rank in (0, 1):
        fill(tmp_path / "store", tower, clips, process_index=rank, num_processes=2)
    store = FeatureStore(tmp_path / "store", SETTINGS)
    assert all(clip_key(clip, 30.0) in store for clip in clips)
    assert len(list((tmp_path / "store").glob("states-001-*.safetensors"))) == 1


def test_the_states_of_another_encoder_are_refused(tmp_path, tower, clips):
    fill(tmp_path / "store", tower, clips)
    with pytest.raises(ValueError, match="was filled with .* give another `data.features`"):
        FeatureStore(tmp_path / "store", {**SETTINGS, "encoder": "another"})
    other = AudioTower(channels=(2, 2, 4), hidden_size=8, num_layers=1)
    assert fingerprint(other) != fingerprint(tower)


def test_prompts_are_found_again_whatever_characters_they_hold(tmp_path):
    class Letters:
        """Encodes a text as its code points."""

        def encode(self, texts):
            rows = [torch.tensor([[float(ord(letter) % 100)] for letter in text]) for text in texts]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return padded, torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]

    texts = ["a\u2028b", "line\nbreak", "安静的钢琴", 'a "quoted" word', "a"]
    store = FeatureStore(tmp_path / "text", {"encoder": "letters", "hidden_size": 1})
    cache_texts(store, Letters(), [*texts, "a"], batch_size=2, texts_per_shard=3)
    again = FeatureStore(tmp_path / "text", {"encoder": "letters", "hidden_size": 1})
    assert len(again) == 5
    for text in texts:
        assert again.read(text)[:, 0].tolist() == [float(ord(letter) % 100) for letter in text]
    with pytest.raises(KeyError, match="has no cached states"):
        again.read("b")


def test_a_key_tells_which_part_of_the_file_was_read(clips):
    whole = clips[0]
    part = RatedClip(**{**whole.__dict__, "start_in_s": 0.1})
    assert len({clip_key(whole, 30.0), clip_key(part, 30.0), clip_key(whole, 10.0)}) == 3
    assert json.loads(clip_key(whole, 30.0))[0] == "clip-0"
