"""Composes and renders a corpus of captioned music with known tempo, key and instruments, clean and degraded.

    python -m data_prep.render_corpus OUT --num-pieces 1000 --num-workers 2

writes `OUT/manifest.jsonl` and `OUT/audio/*.flac`. The corpus depends on the settings alone, not on the number of
processes; a run that was interrupted is taken up where it stopped, and a larger `--num-pieces` adds to what is there.
"""

import argparse
import hashlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.captions import write_captions
from data_prep.composer.composition import Piece, compose
from data_prep.degradation_score import FRAME_RATE, SCORER, degradation_mos, num_score_frames
from data_prep.degradations import Degradation, degrade, draw_degradation
from data_prep.synthesis import DEFAULT_SOUNDFONT, Synthesizer, check_soundfont, import_fluidsynth
from qamdt.audio import SAMPLING_RATE, write_audio
from qamdt.keyed_rows import DONE, KeyedRows, make_key, make_row
from qamdt.manifest import Record, write_manifest
from qamdt.outputs import check_output_folder
from qamdt.settings import hold_folder_to


VERSION = 1  # raise it when the same settings make other music
OUTPUTS = ("manifest.jsonl", "settings.json", "audio/*")
PEAK = 0.5
TEST_EVERY = 20  # one piece in twenty is held out
LICENSE = "composition Apache-2.0, instrument samples MIT"


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What determines a corpus, apart from its number of pieces.

    Args:
        seed: Seed of everything.
        duration_in_s: Length of each clip.
        degraded_share: Share of the pieces that also get a degraded clip.
        free_tempo_share: Share of the pieces whose tempo is drawn from all there are, whatever their style calls for.
        soundfonts: Paths of the General MIDI soundfonts; each piece is played on one of them.
    """

    seed: int = 0
    duration_in_s: float = 10.24
    degraded_share: float = 0.6
    free_tempo_share: float = 0.0
    soundfonts: tuple[str, ...] = (str(DEFAULT_SOUNDFONT),)

    def __post_init__(self):
        if not 1.0 <= self.duration_in_s <= 600.0:
            raise ValueError(f"`duration_in_s` must lie between 1 and 600 seconds, got {self.duration_in_s}.")
        if not 0.0 <= self.degraded_share <= 1.0:
            raise ValueError(f"`degraded_share` must lie between 0 and 1, got {self.degraded_share}.")
        if not 0.0 <= self.free_tempo_share <= 1.0:
            raise ValueError(f"`free_tempo_share` must lie between 0 and 1, got {self.free_tempo_share}.")
        if not self.soundfonts:
            raise ValueError("`soundfonts` must name at least one General MIDI soundfont, got none.")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}.")


def render_piece(
    index: int, folder: Path, settings: CorpusSettings, synthesizers: Sequence[Synthesizer]
) -> list[Record]:
    """Composes, renders and writes one piece; returns the records of its clips.

    Args:
        index: Number of the piece; together with the seed it determines everything.
        folder: Folder of the corpus.
        settings: Settings of the corpus.
        synthesizers: One for each soundfont.
    """
    generator = np.random.default_rng([settings.seed, index])
    piece = compose(generator, duration_in_s=settings.duration_in_s, free_tempo_share=settings.free_tempo_share)
    captions = tuple(write_captions(piece, generator))
    degradation = draw_degradation(generator) if generator.random() < settings.degraded_share else None
    synthesizer = synthesizers[int(generator.integers(len(synthesizers))) if len(synthesizers) > 1 else 0]
    waveform = synthesizer.render(piece, duration_in_s=settings.duration_in_s, sampling_rate=SAMPLING_RATE)
    clean = _normalize(waveform)
    num_frames = num_score_frames(len(clean), SAMPLING_RATE)

    records = [_write_clip(folder, settings, index, piece, captions, clean, None, 5.0, np.full(num_frames, 5.0))]
    if degradation is not None:
        degraded = degrade(clean, SAMPLING_RATE, degradation)
        score, frames = degradation_mos(clean, degraded, SAMPLING_RATE)
        records.append(_write_clip(folder, settings, index, piece, captions, degraded, degradation, score, frames))
    return records


def _normalize(waveform: np.ndarray) -> np.ndarray:
    """Removes the mean and scales the peak to one half."""
    waveform = waveform - waveform.mean()
    return (waveform / max(float(np.abs(waveform).max()), 1e-8) * PEAK).astype(np.float32)


def _write_clip(
    folder: Path,
    settings: CorpusSettings,
    index: int,
    piece: Piece,
    captions: tuple[str, ...],
    waveform: np.ndarray,
    degradation: Degradation | None,
    score: float,
    frames: np.ndarray,
) -> Record:
    """Writes the audio of one clip and returns its record."""
    clip_id = f"piece-{index:06d}-{'clean' if degradation is None else 'degraded'}"
    path = f"audio/{clip_id}.flac"
    write_audio(folder / path, waveform, SAMPLING_RATE)
    return Record(
        id=clip_id,
        path=path,
        start_in_s=0.0,
        duration_in_s=settings.duration_in_s,
        captions=captions,
        tags={
            "tempo_bpm": piece.tempo_bpm,
            "key": piece.key.name if piece.key else None,
            "instruments": piece.instruments,
            "ensemble": piece.ensemble_name,
            "style": piece.style.name,
            "mood": piece.mood.name,
            "beats_per_bar": piece.style.beats_per_bar,
            "piece_id": f"piece-{index:06d}",
            "split": "test" if index % TEST_EVERY == TEST_EVERY - 1 else "train",
            "degradation": asdict(degradation) if degradation else None,
            "seed": settings.seed,
        },
        source="data_prep.render_corpus",
        license=LICENSE,
        quality_score=round(score, 3),
        quality_frames=tuple(round(float(value), 2) for value in frames),
        quality_frame_rate=FRAME_RATE,
        quality_scorer=SCORER,
        tempo_bpm=piece.tempo_bpm,
        first_beat_in_s=0.0,
        time_signature=f"{piece.style.beats_per_bar}/4",
        key=piece.key.name if piece.key else None,
        chords=tuple(chord for chord in piece.chords if chord[0] < settings.duration_in_s) or None,
    )


def render_corpus(
    folder: str | Path, *, num_pieces: int, settings: CorpusSettings | None = None, num_workers: int = 1
) -> Path:
    """Renders a corpus, or what is missing of it.

    Args:
        folder: Folder of the corpus; made if it does not exist.
        num_pieces: Number of pieces.
        settings: What determines the corpus; must be those of the corpus that is already there, if there is one.
        num_workers: Number of processes.

    Returns:
        The path of the manifest, written when the last piece is done.
    """
    settings = settings or CorpusSettings()
    folder = Path(folder)
    if num_pieces < 1 or num_workers < 1:
        raise ValueError(f"`num_pieces` and `num_workers` must be at least 1, got {num_pieces} and {num_workers}.")
    for soundfont in settings.soundfonts:
        check_soundfont(soundfont)
    import_fluidsynth()
    check_output_folder(folder, OUTPUTS, is_ours=(folder / "pieces.jsonl").is_file())
    decisive = asdict(settings) | {"version": VERSION, "soundfont_digests": list(map(_digest, settings.soundfonts))}
    manifest_path = folder / "manifest.jsonl"
    keys = [make_key(index, decisive) for index in range(num_pieces)]
    with KeyedRows(folder, "pieces") as rows:
        hold_folder_to(folder / "settings.json", decisive, remedy="choose another folder or the same settings")
        (folder / "audio").mkdir(exist_ok=True)
        missing = [index for index, key in enumerate(keys) if not _is_whole(rows, key, folder)]
        num_there = num_pieces - len(missing)
        tqdm.write(f"{num_there} of {num_pieces} pieces are there, {len(missing)} are rendered.", file=sys.stderr)
        rendered = _rendered(missing, folder, settings, num_workers)
        for index, records in tqdm(rendered, initial=num_there, total=num_pieces, unit="piece", disable=None):
            values = {"records": [record.to_dict() for record in records]}
            rows.append(make_row(keys[index], f"piece-{index:06d}") | values)
        rows.refresh()
        write_manifest(manifest_path, (record for key in keys for record in _read_records(rows, key)))
    return manifest_path


def _is_whole(rows: KeyedRows, key: int, folder: Path) -> bool:
    """Whether a piece is rendered and its audio is there."""
    return rows.status(key) == DONE and all((folder / record.path).is_file() for record in _read_records(rows, key))


def _read_records(rows: KeyedRows, key: int) -> list[Record]:
    return [Record.from_dict(values) for values in rows.read(key)["records"]]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rendered(
    indices: list[int], folder: Path, settings: CorpusSettings, num_workers: int
) -> Iterator[tuple[int, list[Record]]]:
    """Renders pieces in parallel and yields them in order."""
    if not indices:
        return
    if num_workers == 1:
        synthesizers = [Synthesizer(soundfont) for soundfont in settings.soundfonts]
        for index in indices:
            yield index, render_piece(index, folder, settings, synthesizers)
        return
    # A fresh interpreter for each worker: forking a process that has used threads (torch) can hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (folder, settings))
    try:
        yield from executor.map(_render_in_worker, indices, chunksize=4)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died (its error is above; without one, memory may have run out). "
            "Run the same command again to continue, with a smaller `num_workers` if need be."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_worker: tuple[Path, CorpusSettings, list[Synthesizer]] | None = None


def _start_worker(folder: Path, settings: CorpusSettings) -> None:
    """Loads the soundfonts once in a worker process."""
    global _worker
    _worker = folder, settings, [Synthesizer(soundfont) for soundfont in settings.soundfonts]


def _render_in_worker(index: int) -> tuple[int, list[Record]]:
    folder, settings, synthesizers = _worker
    return index, render_piece(index, folder, settings, synthesizers)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.render_corpus", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the corpus goes")
    parser.add_argument("--num-pieces", type=int, default=100, help="number of pieces (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default %(default)s)")
    parser.add_argument("--num-workers", type=int, default=1, help="number of processes (default %(default)s)")
    parser.add_argument("--duration-in-s", type=float, default=10.24, help="length of a clip (default %(default)s)")
    parser.add_argument(
        "--degraded-share",
        type=float,
        default=0.6,
        help="share of the pieces with a degraded clip (default %(default)s)",
    )
    parser.add_argument(
        "--free-tempo-share",
        type=float,
        default=0.0,
        help="share of the pieces at any tempo, whatever their style calls for (default %(default)s)",
    )
    parser.add_argument(
        "--soundfonts",
        nargs="+",
        default=[str(DEFAULT_SOUNDFONT)],
        metavar="FILE",
        help="General MIDI soundfonts; each piece is played on one of them (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        settings = CorpusSettings(
            seed=arguments.seed,
            duration_in_s=arguments.duration_in_s,
            degraded_share=arguments.degraded_share,
            free_tempo_share=arguments.free_tempo_share,
            soundfonts=tuple(arguments.soundfonts),
        )
        manifest_path = render_corpus(
            arguments.folder, num_pieces=arguments.num_pieces, settings=settings, num_workers=arguments.num_workers
        )
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {manifest_path}")


if __name__ == "__main__":
    main()
