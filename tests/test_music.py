"""What is played, as numbers: keys, chords, and where each frame lies in its beat and bar."""

import math

import numpy as np
import pytest

from qamdt.music import CHORD, KEY, NUM_MUSIC_FEATURES, RHYTHM, Music, music_curve, parse_chord, parse_key


FRAME_IN_S = 0.08
TIMES = (np.arange(128) + 0.5) * FRAME_IN_S


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A minor", (9, "minor")),
        ("Bb major", (10, "major")),
        ("b flat major", (10, "major")),
        ("f sharp minor", (6, "minor")),
        ("F#m", (6, "minor")),
        ("E♭ major", (3, "major")),
        ("C", (0, "major")),
        ("Cb major", (11, "major")),
    ],
)
def test_keys_are_read_as_people_write_them(name, expected):
    assert parse_key(name) == expected


@pytest.mark.parametrize("name", ["H minor", "minor", "", "A dorian", None, 3])
def test_a_key_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="`key` must be a tonic and a mode"):
        parse_key(name)


@pytest.mark.parametrize(
    ("symbol", "tones", "bass"),
    [
        ("C", {0, 4, 7}, 0),
        ("Am7", {9, 0, 4, 7}, 9),
        ("F#m7b5", {6, 9, 0, 4}, 6),
        ("Bbmaj7", {10, 2, 5, 9}, 10),
        ("G7/B", {7, 11, 2, 5}, 11),
        ("Bdim", {11, 2, 5}, 11),
    ],
)
def test_chords_are_their_pitch_classes_and_their_bass(symbol, tones, bass):
    assert parse_chord(symbol) == (tuple(sorted(tones)), bass)


@pytest.mark.parametrize("symbol", ["Hm", "", "Xyz", "N.C."])
def test_a_chord_that_is_none_is_refused(symbol):
    with pytest.raises(ValueError, match="`chords` must hold symbols"):
        parse_chord(symbol)


def test_nothing_known_is_all_zeros():
    assert not music_curve(Music(), TIMES, FRAME_IN_S).any()
    assert music_curve(Music(), TIMES, FRAME_IN_S).shape == (128, NUM_MUSIC_FEATURES)


def test_a_frame_knows_where_in_beat_and_bar_it_lies():
    music = Music(tempo_bpm=120, first_beat_in_s=0.5, time_signature="3/4")
    # Two beats a second: 0.5 s is a first beat, 0.75 s lies half a beat after it, 2.0 s is the next bar.
    rhythm = music_curve(music, [0.5, 0.75, 2.0, 1.0], FRAME_IN_S)[:, RHYTHM]
    sine, cosine = rhythm[:, 0], rhythm[:, 1]
    np.testing.assert_allclose(cosine, [1, -1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(sine, 0, atol=1e-6)
    bar_sine, bar_cosine = rhythm[:, 6], rhythm[:, 7]
    np.testing.assert_allclose(bar_cosine, [1, math.cos(math.pi / 3), 1, math.cos(2 * math.pi / 3)], atol=1e-6)
    np.testing.assert_allclose(bar_sine, [0, math.sin(math.pi / 3), 0, math.sin(2 * math.pi / 3)], atol=1e-6)
    np.testing.assert_allclose(rhythm[:, 8], math.log2(120 / 110), atol=1e-6)
    assert (rhythm[:, 9] == 1).all()


def test_relative_keys_share_a_scale_and_differ_in_tonic_and_mode():
    major, minor = (music_curve(Music(key=key), TIMES, FRAME_IN_S)[0, KEY] for key in ("C major", "A minor"))
    np.testing.assert_array_equal(major[12:24], minor[12:24])
    assert major[0] == 1
    assert minor[9] == 1
    assert (major[24], minor[24]) == (1, 0)
    assert major[25] == minor[25] == 1


def test_a_chord_that_changes_inside_a_frame_counts_for_its_share():
    music = Music(chords=((0.0, "C"), (0.1, "F")))
    chords = music_curve(music, TIMES[:3], FRAME_IN_S)[:, CHORD]
    np.testing.assert_allclose(chords[:, 12 + 0], [1.0, 0.25, 0.0], atol=1e-6)  # the bass of C
    np.testing.assert_allclose(chords[:, 12 + 5], [0.0, 0.75, 1.0], atol=1e-6)  # and of F
    np.testing.assert_allclose(chords[:, 24], 1.0, atol=1e-6)


def test_chords_are_unknown_before_the_first():
    chords = music_curve(Music(chords=((0.16, "C"),)), TIMES[:4], FRAME_IN_S)[:, CHORD]
    np.testing.assert_array_equal(chords[:, 24], [0, 0, 1, 1])


def test_parts_can_be_left_out():
    music = Music(tempo_bpm=90, first_beat_in_s=0.0, time_signature="4/4", key="D minor", chords=((0.0, "Dm"),))
    for part, rows in (("rhythm", RHYTHM), ("key", KEY), ("chords", CHORD)):
        curve = music_curve(music.without(**{part: True}), TIMES, FRAME_IN_S)
        assert not curve[:, rows].any()
        others = np.delete(curve, np.r_[rows], axis=1)
        np.testing.assert_array_equal(others, np.delete(music_curve(music, TIMES, FRAME_IN_S), np.r_[rows], axis=1))
