"""What a prompt says of tempo, key and metre."""

import pytest

from qamdt.prompt_music import TEMPO_WORDS, read_prompt


@pytest.mark.parametrize(
    ("prompt", "bpm"),
    [
        ("solo piano in A minor at 120 bpm", 120),
        ("piano, 98 BPM", 98),
        ("82 beats per minute, guitar", 82),
        ("ninety-six bpm jazz", 96),
        ("a waltz at one hundred and twenty beats per minute", 120),
        ("one twenty bpm techno", 120),
        ("a hundred and five beats a minute", 105),
        ("tempo: 140", 140),
        ("techno, bpm=128", 128),
        ("BPM: 93.5", 93.5),
        ("organ, quarter note = 84", 84),
        ("organ, ♩ = 84", 84),
        ("tempo one-twenty, in A major", 120),
        ("tempo of ninety", 90),
        ("at a tempo a child can follow", None),
        ("guitar at 60-70 bpm", None),
        ("the years 1990-95, 120 bpm", 120),
        ("at 400 bpm", None),
        ("solo piano", None),
        ("the year 1985", None),
    ],
)
def test_tempi_in_digits_and_words(prompt, bpm):
    assert read_prompt(prompt).tempo_bpm == bpm


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("allegro in E flat minor", "Eb minor"),
        ("hymn in B-flat major", "Bb major"),
        ("f sharp minor", "F# minor"),
        ("string quartet in a minor", "A minor"),
        ("song in Am at 90 bpm", "A minor"),
        ("rock in the key of C", "C major"),
        ("In D, slow", "D major"),
        ("modal jazz in D dorian", "D minor"),
        ("F# Mixolydian", "F# major"),
        ("in a minor key, sad", None),
        ("a major event", None),
        ("bass and drums", None),
    ],
)
def test_keys_as_people_write_them(prompt, key):
    assert read_prompt(prompt).key == key


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a very slow hymn", TEMPO_WORDS["very slow"]),
        ("moderately fast tune", TEMPO_WORDS["moderately fast"]),
        ("allegro", TEMPO_WORDS["allegro"]),
        ("slow guitar at 60-70 bpm", (60, 70)),
        ("from 120 to 124 beats per minute", (120, 124)),
        ("70-60 bpm, slow", TEMPO_WORDS["slow"]),
        ("breakfast music", None),
    ],
)
def test_words_for_a_tempo_stand_for_a_range(prompt, expected):
    assert read_prompt(prompt).tempo_range_bpm == expected


def test_a_word_for_a_tempo_counts_before_a_style():
    assert read_prompt("slow techno").tempo_range_bpm == TEMPO_WORDS["slow"]


@pytest.mark.parametrize(("prompt", "metre"), [("a waltz", "3/4"), ("in 4/4", "4/4"), ("a song", None)])
def test_metres(prompt, metre):
    assert read_prompt(prompt).time_signature == metre
