"""Composed music is what its captions say, and a corpus is the same however it was rendered."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep import render_corpus as render_corpus_module
from data_prep.captions import tempo_words, write_captions
from data_prep.composer.composition import Piece, compose
from data_prep.composer.harmony import Chord, Key, close_voicing, four_part_voicing
from data_prep.composer.instruments import INSTRUMENTS
from data_prep.composer.moods import MOODS
from data_prep.composer.score import parse_pattern
from data_prep.composer.styles import STYLES
from data_prep.render_corpus import CorpusSettings, main, render_corpus
from data_prep.synthesis import DEFAULT_SOUNDFONT, Synthesizer, check_soundfont, import_fluidsynth
from qamdt.keyed_rows import KeyedRows
from qamdt.manifest import read_manifest
from qamdt.music import parse_chord


DURATION_IN_S = 10.24
KICK = 36


def compose_many(count: int, seed: int = 11) -> list[Piece]:
    return [compose(np.random.default_rng([seed, index])) for index in range(count)]


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return compose_many(400)


def can_render() -> str | None:
    """Says why nothing can be rendered here, or nothing if it can."""
    try:
        import_fluidsynth()
        check_soundfont(DEFAULT_SOUNDFONT)
    except (ImportError, FileNotFoundError) as error:
        return str(error)
    return None


needs_fluidsynth = pytest.mark.skipif(can_render() is not None, reason=str(can_render()))


def test_the_same_seed_composes_the_same_piece():
    assert compose_many(5) == compose_many(5)
    assert compose_many(5) != compose_many(5, seed=12)


def test_the_corpus_is_wide(pieces):
    assert len({piece.style.name for piece in pieces}) >= 20
    assert len({name for piece in pieces for name in piece.instruments}) >= 45
    assert len({piece.key for piece in pieces if piece.key}) == 24
    tempi = [piece.tempo_bpm for piece in pieces]
    assert min(tempi) >= 60
    assert max(tempi) <= 180
    assert max(tempi) - min(tempi) > 100
    lone = [piece for piece in pieces if len(piece.parts) == 1 or "quartet" in (piece.ensemble_name or "")]
    assert 0.25 < len(lone) / len(pieces) < 0.45


def test_every_style_and_mood_is_written_with_instruments_that_exist():
    for style in STYLES.values():
        assert set(style.moods) <= set(MOODS)
        assert set(style.progressions) == {"major", "minor"}
        for ensemble in (*style.bands, *style.solos):
            for role in ensemble.roles:
                assert set(role.instruments) <= set(INSTRUMENTS), f"{style.name}: {role}"
        for pattern in (*style.comping, *style.arpeggios, *(p for drums in style.drums for p in drums.values())):
            assert len(pattern) == style.steps_per_bar or (style.beats_per_bar == 3 and len(pattern) == 16)


def test_notes_stay_in_the_key(pieces):
    for piece in pieces:
        if piece.key is None:
            continue
        allowed = set(piece.key.scale()) | set(piece.key.scale(degree=5))
        for part in piece.parts:
            if not part.instrument.is_drum_kit:
                assert {note.pitch % 12 for note in part.notes} <= allowed, (piece.style.name, part.instrument.name)


def test_notes_lie_in_the_range_of_their_instrument(pieces):
    for piece in pieces:
        for part in piece.parts:
            instrument = part.instrument
            if not instrument.is_drum_kit:
                outside = [n.pitch for n in part.notes if not instrument.low - 7 <= n.pitch <= instrument.high + 12]
                assert len(outside) <= 0.02 * len(part.notes), (piece.style.name, instrument.name, outside[:5])


def test_every_named_instrument_sounds_inside_the_clip(pieces):
    for piece in pieces:
        start = piece.start_in_s / piece.seconds_per_beat
        end = start + DURATION_IN_S / piece.seconds_per_beat
        for part in piece.parts:
            assert any(start <= note.start < end for note in part.notes), (piece.style.name, part.instrument.name)


def test_the_kick_drum_keeps_the_tempo(pieces):
    measured = 0
    for piece in pieces:
        for part in piece.parts:
            kicks = [note.start * piece.seconds_per_beat for note in part.notes if note.pitch == KICK]
            if not part.instrument.is_drum_kit or len(kicks) < 8:
                continue
            # The same place of the pattern comes back after each bar.
            waits = np.subtract.outer(kicks, kicks)
            periods = waits[np.abs(waits - piece.seconds_per_bar) < 0.1]
            beats_per_minute = 60 * piece.style.beats_per_bar / np.median(periods)
            assert beats_per_minute == pytest.approx(piece.tempo_bpm, rel=0.01)
            measured += 1
    assert measured > 50


def test_minor_dominants_lead_back_to_the_tonic():
    assert Chord(Key(9, "minor"), degree=5).pitch_classes == (4, 8, 11)  # E, G sharp, B in A minor


def test_chords_move_by_small_steps():
    key = Key(0, "major")
    tonic = close_voicing(Chord(key, 1), 60)
    subdominant = close_voicing(Chord(key, 4), 60, tonic)
    assert sum(abs(a - b) for a, b in zip(tonic, subdominant, strict=True)) <= 5


def test_four_voices_neither_cross_nor_miss_a_chord_tone():
    generator = np.random.default_rng(0)
    voicing = None
    for degree in (1, 4, 5, 1, 6, 2, 5, 1):
        chord = Chord(Key(2, "major"), degree)
        voicing = four_part_voicing(chord, voicing, generator)
        assert voicing == sorted(voicing)
        assert {pitch % 12 for pitch in voicing} == set(chord.pitch_classes)


def test_patterns_hold_notes_over_dashes():
    notes = parse_pattern("x--.X.o-")
    assert [(note.step, note.num_steps, note.symbol) for note in notes] == [(0, 3, "x"), (4, 1, "X"), (6, 2, "o")]


def test_captions_mention_true_facts_only(pieces):
    names = {name: instrument for instrument in INSTRUMENTS.values() for name in instrument.names}
    for index, piece in enumerate(pieces):
        for caption in write_captions(piece, np.random.default_rng(index)):
            assert {int(number) for number in re.findall(r"(\d+) (?:bpm|BPM|beats)", caption)} <= {piece.tempo_bpm}
            for letter, accidental, mode in re.findall(r"\b([A-G])(b|#| flat| sharp)? (major|minor)\b", caption):
                spelled = letter + {" flat": "b", " sharp": "#"}.get(accidental, accidental)
                assert f"{spelled} {mode}" == piece.key.name, caption
            _assert_instruments_play(piece, caption, names)
            if "solo" in caption:
                assert len(piece.parts) == 1, caption


def test_captions_name_the_mood_of_the_piece_only(pieces):
    for index, piece in enumerate(pieces):
        # What is no mood: "Latin dance", "warm pad", "soft drums".
        other = {word for name in piece.style.names for word in name.split()} | {"warm", "bright"}
        for caption in write_captions(piece, np.random.default_rng(index)):
            moods = {
                word for mood in MOODS.values() for word in mood.names if re.search(rf"\b{word}\b", caption.lower())
            }
            assert moods - other <= set(piece.mood.names), caption


def _assert_instruments_play(piece: Piece, caption: str, names: dict) -> None:
    """Reads instrument names from a caption, the longest first, and compares them with the players."""
    playing = {name for part in piece.parts for name in part.instrument.names}
    rest = caption
    for word in (piece.ensemble_name or "", *sorted(piece.style.names, key=len, reverse=True)):
        rest = rest.replace(word, "#") if word else rest
    for name in sorted(names, key=len, reverse=True):
        if re.search(rf"\b{re.escape(name)}\b", rest):
            assert name in playing, f"{caption!r} names {name!r}, but {sorted(playing)} play"
            rest = re.sub(rf"\b{re.escape(name)}\b", "#", rest)


def test_tempo_words_do_not_contradict_each_other(pieces):
    for piece in pieces:
        words = tempo_words(piece)
        assert ("slow" in words) == (piece.tempo_bpm < 76)
        assert ("fast" in words) == (piece.tempo_bpm >= 132)


def test_captions_vary_in_length_and_wording(pieces):
    captions = [c for index, piece in enumerate(pieces) for c in write_captions(piece, np.random.default_rng(index))]
    assert len(set(captions)) > 0.9 * len(captions)
    assert min(len(caption.split()) for caption in captions) <= 2
    assert max(len(caption.split()) for caption in captions) >= 15
    alone = {c for c in captions if re.fullmatch(r"solo [a-z ]+|[a-z]+ quartet|techno|funk|waltz", c)}
    assert len(alone) > 8


def test_chords_of_a_clip_are_those_of_its_bars(pieces):
    for piece in pieces[:100]:
        if piece.key is None:
            assert piece.chords == []
            continue
        beats = 60 / piece.tempo_bpm
        for second, symbol in piece.chords:
            style = piece.style
            steps = round(second / beats * style.steps_per_beat)
            bar, step = divmod(steps, style.beats_per_bar * style.steps_per_beat)
            spans = piece.bars[piece.start_bar + bar]
            sounding = next(span.chord for span in reversed(spans) if span.step <= step)
            tones, bass = parse_chord(symbol)
            assert set(tones) == set(sounding.pitch_classes[:4])
            assert bass == sounding.root
        assert piece.chords[0][0] == 0.0


def test_free_tempi_leave_the_range_of_the_style_and_change_nothing_when_not_asked_for():
    tempi = {}
    for share in (0.0, 0.3, 1.0):
        pieces = [compose(np.random.default_rng([5, index]), free_tempo_share=share) for index in range(150)]
        tempi[share] = [(piece.tempo_bpm, piece.style.tempo) for piece in pieces]
    outside = {
        share: np.mean([not low <= bpm <= high for bpm, (low, high) in found]) for share, found in tempi.items()
    }
    assert outside[0.0] == 0
    assert 0.05 < outside[0.3] < 0.35
    assert outside[1.0] > 0.5
    assert min(bpm for bpm, _ in tempi[1.0]) < 55
    assert max(bpm for bpm, _ in tempi[1.0]) > 170


def test_longer_clips_are_composed_to_their_end():
    piece = compose(np.random.default_rng(3), duration_in_s=40.0)
    end = (piece.start_in_s + 40.0) / piece.seconds_per_beat
    assert max(note.start for part in piece.parts for note in part.notes) > end - 2 * piece.style.beats_per_bar


def test_a_missing_soundfont_is_named_with_its_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="fluid-soundfont-gm"):
        check_soundfont(tmp_path / "none.sf2")
    (tmp_path / "fake.sf2").write_bytes(b"not a soundfont at all")
    with pytest.raises(ValueError, match="`soundfont` must be a General MIDI"):
        check_soundfont(tmp_path / "fake.sf2")


@pytest.mark.parametrize(
    "arguments",
    [["--num-pieces", "0"], ["--duration-in-s", "0.1"], ["--degraded-share", "2"], ["--soundfont", "/none.sf2"]],
)
def test_bad_arguments_end_the_command_with_a_sentence(tmp_path, arguments):
    with pytest.raises(SystemExit, match="error: `"):
        main([str(tmp_path / "corpus"), *arguments])
    assert not (tmp_path / "corpus").exists()


SHORT = CorpusSettings(seed=5, duration_in_s=2.0)


def contents(folder: Path) -> dict[str, bytes]:
    """What a corpus consists of: its manifest and audio, byte by byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name == "manifest.jsonl" or path.suffix == ".flac"
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    reason = can_render()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("corpus")
    render_corpus(folder, num_pieces=8, settings=SHORT)
    return folder


def test_rendered_clips_are_normalised_and_described(corpus):
    import soundfile

    records = read_manifest(corpus / "manifest.jsonl")
    clean = [record for record in records if record.tags["degradation"] is None]
    degraded = [record for record in records if record.tags["degradation"]]
    assert len(clean) == 8
    assert 0 < len(degraded) <= 8
    for record in records:
        waveform, sampling_rate = soundfile.read(corpus / record.path)
        assert sampling_rate == 16_000
        assert len(waveform) == 32_000
        assert len(record.quality_frames) == 25
        assert 3 <= len(record.captions) <= 5
        if record in clean:
            assert np.abs(waveform).max() == pytest.approx(0.5, abs=1e-3)
            assert record.quality_score == 5.0
        else:
            assert record.quality_score < 5.0


def test_an_interrupted_run_is_completed_to_the_same_corpus(corpus, tmp_path, monkeypatch):
    render_piece = render_corpus_module.render_piece

    def stop_at_the_fourth_piece(index, *arguments):
        if index == 3:
            raise KeyboardInterrupt
        return render_piece(index, *arguments)

    monkeypatch.setattr(render_corpus_module, "render_piece", stop_at_the_fourth_piece)
    with pytest.raises(KeyboardInterrupt):
        render_corpus(tmp_path, num_pieces=8, settings=SHORT)
    assert not (tmp_path / "manifest.jsonl").exists()
    with (tmp_path / "pieces.jsonl").open("a") as file:
        file.write('{"key": "3", "rec')  # killed in the middle of a line
    (tmp_path / "audio" / "piece-000001-clean.flac").unlink()

    rendered = []
    monkeypatch.setattr(
        render_corpus_module, "render_piece", lambda index, *a: rendered.append(index) or render_piece(index, *a)
    )
    render_corpus(tmp_path, num_pieces=8, settings=SHORT)
    assert rendered == [1, 3, 4, 5, 6, 7]
    assert contents(tmp_path) == contents(corpus)


@needs_fluidsynth
def test_more_pieces_extend_a_corpus_and_other_settings_are_refused(corpus, tmp_path):
    render_corpus(tmp_path, num_pieces=2, settings=SHORT)
    assert len({record.tags["piece_id"] for record in read_manifest(tmp_path / "manifest.jsonl")}) == 2
    with pytest.raises(ValueError, match="other settings"):
        render_corpus(tmp_path, num_pieces=2, settings=dataclasses.replace(SHORT, seed=6))
    render_corpus(tmp_path, num_pieces=8, settings=SHORT, num_workers=2)
    assert contents(tmp_path) == contents(corpus)


@needs_fluidsynth
def test_a_soundfont_that_was_replaced_and_a_second_process_are_refused(tmp_path, monkeypatch):
    soundfont = tmp_path / "font.sf2"
    soundfont.write_bytes(b"one")
    monkeypatch.setattr(render_corpus_module, "_rendered", lambda *_: iter(()))
    settings = dataclasses.replace(SHORT, soundfonts=(str(soundfont),))
    monkeypatch.setattr(render_corpus_module, "check_soundfont", lambda path: None)
    with KeyedRows(tmp_path / "corpus", "pieces"), pytest.raises(RuntimeError, match="another process is writing"):
        render_corpus(tmp_path / "corpus", num_pieces=1, settings=settings)
    with pytest.raises(KeyError):  # nothing is rendered here
        render_corpus(tmp_path / "corpus", num_pieces=1, settings=settings)
    soundfont.write_bytes(b"two")
    with pytest.raises(ValueError, match="other settings: `soundfont_digests` was"):
        render_corpus(tmp_path / "corpus", num_pieces=1, settings=settings)


@needs_fluidsynth
def test_rendered_drums_beat_at_the_tempo_of_the_caption():
    pieces = (compose(np.random.default_rng([2, index])) for index in range(200))
    piece = next(piece for piece in pieces if piece.style.name == "techno" and piece.parts[-1].instrument.is_drum_kit)
    drums = dataclasses.replace(piece, parts=piece.parts[-1:])
    waveform = Synthesizer().render(drums, duration_in_s=DURATION_IN_S, sampling_rate=16_000)
    energy = np.square(waveform[: len(waveform) // 160 * 160]).reshape(-1, 160).sum(axis=1)  # every 10 ms
    onsets = np.maximum(np.diff(np.sqrt(energy)), 0)
    lags = np.arange(30, 60)  # 100 to 200 beats per minute
    similarity = [np.dot(onsets[lag:], onsets[:-lag]) for lag in lags]
    beat_in_s = lags[int(np.argmax(similarity))] / 100
    assert beat_in_s == pytest.approx(piece.seconds_per_beat, abs=0.011)


def test_held_out_pieces_are_one_in_twenty(tmp_path, monkeypatch):
    split = [index % render_corpus_module.TEST_EVERY == render_corpus_module.TEST_EVERY - 1 for index in range(200)]
    assert sum(split) == 10


def test_the_manifest_is_plain_json(corpus):
    for line in (corpus / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert {"tempo_bpm", "key", "instruments", "style", "mood", "piece_id", "split"} <= record["tags"].keys()
        assert record["tags"]["instruments"]
