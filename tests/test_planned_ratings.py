import json

import pytest

from whisq.ratings import RatedClip
from whisq.training.config import DataConfig
from whisq.training.dataset import window_quality
from whisq.training.planned_ratings import Content, PromptPlan, overlap, read_rated_manifest


def content(piece, style="waltz", instruments=("piano",), **tags):
    captions = (f"{style} with {' and '.join(instruments)}", f"{piece}, {style}")
    return Content(piece=piece, captions=captions, tags={"style": style, "instruments": list(instruments), **tags})


def test_what_contents_have_in_common_is_counted():
    first = content("a", mood="calm", key="C major", tempo_bpm=100)
    assert overlap(first, first) == 1
    assert overlap(first, content("b", "rock", ("drums",), mood="wild", key="A minor", tempo_bpm=160)) == 0
    assert overlap(first, content("b", instruments=("piano", "flute"))) == pytest.approx((2 + 1) / 7)
    assert overlap(first, content("b", "rock", ("drums",), tempo_bpm=103)) == pytest.approx(1 / 7)
    # What nobody knows is not in common.
    assert overlap(content("a"), content("b")) == pytest.approx(4 / 7)


@pytest.fixture
def planned():
    styles = ("waltz", "rock", "jazz")
    contents = {f"{i}": content(f"piece-{i}", styles[i % 3], (f"instrument {i % 5}",)) for i in range(60)}
    clips = [RatedClip(id=clip_id, path=None, system="S", overall_quality=3.0) for clip_id in contents]
    return PromptPlan(contents, matched_share=0.4), clips


def test_planned_prompts_are_rated_by_how_well_they_fit(planned):
    plan, clips = planned
    drawn = [clip for seed in range(20) for clip in plan.draw(clips, f"{seed}")]
    matched = [clip.prompt in plan.contents[clip.id].captions for clip in drawn]
    assert all(clip.text_alignment == 5.0 for clip, is_match in zip(drawn, matched, strict=True) if is_match)
    ratings = [clip.text_alignment for clip in drawn]
    assert 0.38 < sum(matched) / len(drawn) < 0.6
    assert sum(rating == 1.0 for rating in ratings) > 0.1 * len(drawn)
    assert sum(1.0 < rating < 5.0 for rating in ratings) > 0.1 * len(drawn)
    assert {clip.prompt for clip in drawn} <= plan.list_prompts(clips)


def test_a_plan_repeats_with_its_seed(planned):
    plan, clips = planned
    assert plan.draw(clips, "a") == plan.draw(clips, "a") != plan.draw(clips, "b")


def test_versions_of_a_piece_are_no_mismatch():
    contents = {name: content("same piece") for name in ("clean", "noisy")}
    clips = [RatedClip(id=name, path=None, system="S", overall_quality=3.0) for name in contents]
    drawn = [clip for seed in range(30) for clip in PromptPlan(contents, 0.4).draw(clips, f"{seed}")]
    assert {clip.text_alignment for clip in drawn} == {5.0, None}


def test_the_rating_of_a_window_is_the_mean_of_the_curve_inside_it():
    clip = RatedClip(
        id="a", path=None, system="S", overall_quality=3.0, quality_frames=(1, 2, 3, 4, 5), quality_frame_rate=2.0
    )
    assert window_quality(clip, 0, 25, frames_per_s=10.0) == 3.0
    assert window_quality(clip, 10, 20, frames_per_s=10.0) == 3.5
    assert window_quality(clip, 24, 25, frames_per_s=10.0) == 5.0
    plain = RatedClip(id="b", path=None, system="S", overall_quality=4.0)
    assert window_quality(plain, 3, 5, frames_per_s=10.0) == 4.0


def write_manifest(folder, *changes):
    record = {
        "path": "a.wav",
        "duration_in_s": 2.0,
        "captions": ["a waltz", " ", "a slow waltz"],
        "quality_score": 4.0,
        "tags": {"style": "waltz", "degradation": {"kind": "noise", "severity": 0.5}},
    }
    lines = [json.dumps({"id": f"{i}", **record, **change}) + "\n" for i, change in enumerate(changes)]
    (folder / "manifest.jsonl").write_text("".join(lines))
    return DataConfig(manifest=str(folder / "manifest.jsonl"))


def test_a_manifest_gives_clips_and_their_content(tmp_path):
    config = write_manifest(
        tmp_path, {}, {"tags": {"split": "test"}, "quality_frames": [1, 2], "quality_frame_rate": 1.0}
    )
    music, plan = read_rated_manifest(config)
    (clip,) = music.splits["train"]
    assert (clip.system, clip.overall_quality, clip.path) == ("noise", 4.0, tmp_path / "a.wav")
    assert plan.contents["0"].captions == ("a waltz", "a slow waltz")
    assert music.splits["test"][0].quality_frames == (1.0, 2.0)
    assert music.splits["test"][0].system == "None"


def test_dev_pieces_are_held_out_with_all_their_versions(tmp_path):
    changes = [{"tags": {"piece_id": f"piece-{i // 2}"}} for i in range(400)]
    music, plan = read_rated_manifest(write_manifest(tmp_path, *changes))
    dev, train = ({plan.contents[c.id].piece for c in music.splits[split]} for split in ("dev", "train"))
    assert not dev & train
    assert len(music.splits["dev"]) == 2 * len(dev)
    assert 3 <= len(dev) <= 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality_score": None}, "has no `quality_score`"),
        ({"quality_score": 7}, "must lie between 1 and 5"),
        ({"path": "../a.wav"}, "stay inside the manifest's folder"),
        ({"captions": "one string"}, "`captions` must be a list of strings, got a string"),
        ({"id": "0"}, "ids must be unique"),
        ({"quality_frames": [3.0]}, "lack a `quality_frame_rate`"),
    ],
)
def test_bad_records_are_listed(tmp_path, change, message):
    music, _ = read_rated_manifest(write_manifest(tmp_path, {}, change))
    assert len(music.splits["train"]) == 1
    assert [fault.line for fault in music.faults] == [2]
    assert message in music.faults[0].error
