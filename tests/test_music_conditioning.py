"""From the arguments of a call, the prompt and a plan to what is played."""

import numpy as np
import pytest

from pipelines.music_conditioning import MusicRequest, lay_out_chords, resolve_music
from qamdt.music import parse_chord, parse_key


def resolve(prompt: str, *, plan: bool = True, seed: int = 0, **request):
    return resolve_music(prompt, MusicRequest(**request), 10.0, np.random.default_rng(seed), plan=plan)


def test_arguments_count_before_the_prompt():
    music = resolve("piano in C major at 90 bpm", bpm=120, key="A minor")
    assert (music.tempo_bpm, music.key) == (120, "A minor")


def test_the_prompt_counts_before_the_plan():
    music = resolve("waltz in E flat minor at 90 bpm")
    assert (music.tempo_bpm, music.key, music.time_signature) == (90, "Eb minor", "3/4")


def test_chords_last_a_bar_each_and_come_again():
    music = resolve("piano", bpm=120, chords="Am F", time_signature="3/4")
    assert music.chords[:3] == ((0.0, "Am"), (1.5, "F"), (3.0, "Am"))
    assert music.chords[-1][0] < 10.0


def test_chords_that_share_a_bar():
    assert lay_out_chords("C | F G", 2.0, 4.0) == [(0.0, "C"), (2.0, "F"), (3.0, "G")]


def test_chords_in_seconds_stay_where_they_are():
    assert resolve("piano", chords=[(0.5, "C"), (2.5, "G7")]).chords == ((0.5, "C"), (2.5, "G7"))


def test_what_nobody_said_is_planned_within_what_was_said():
    for seed in range(20):
        music = resolve("slow sad song", seed=seed)
        assert 54 <= music.tempo_bpm <= 75
        assert music.key.endswith("minor")
        tonic, _ = parse_key(music.key)
        assert parse_chord(music.chords[0][1])[1] == tonic  # begins at home
    assert len({resolve("song", seed=seed).key for seed in range(20)}) > 8


def test_the_same_seed_plans_the_same():
    assert resolve("song", seed=3) == resolve("song", seed=3)


def test_without_a_plan_it_stays_unknown():
    music = resolve("song", plan=False)
    assert music.tempo_bpm is music.key is music.chords is music.time_signature is None


def test_drums_alone_have_no_key():
    assert resolve("a drum solo").key is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("bpm", "fast"),
        ("bpm", 500),
        ("bpm", float("nan")),
        ("bpm", True),
        ("key", "H minor"),
        ("chords", "Hm"),
        ("chords", ""),
        ("chords", "C || G"),
        ("chords", [(2, "C"), (1, "G")]),
        ("chords", [3]),
        ("time_signature", "5/4"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        MusicRequest(**{argument: value})


@pytest.mark.parametrize(
    ("key", "chords"),
    [
        ("F# major", {"F#", "B", "C#", "D#m", "G#m", "A#m"}),
        ("Ab major", {"Ab", "Db", "Eb", "Fm", "Bbm", "Cm"}),
        ("C# minor", {"C#m", "F#m", "G#", "A", "B", "E"}),
        ("G minor", {"Gm", "Cm", "D", "Eb", "F", "Bb"}),
    ],
)
def test_planned_chords_are_spelt_in_their_key(key, chords):
    played = set()
    for seed in range(60):
        played |= {symbol for _, symbol in resolve("harp at 120 bpm", key=key, seed=seed).chords}
    assert played == chords
