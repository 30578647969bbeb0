"""Makes the small corpus that ships with the project, so that every step can be tried at once, without a synthesizer.

    python -m data_prep.make_sample_corpus data_prep/sample_corpus

writes `manifest.jsonl` and `audio/*.ogg`: about forty clips in less than three megabytes. They come from
`data_prep.render_corpus`; as Ogg Vorbis loses a little, each clip is scored again, as it sounds when decoded.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from data_prep.degradation_score import degradation_mos
from data_prep.render_corpus import CorpusSettings, render_corpus
from qamdt.audio import SAMPLING_RATE, read_audio, write_audio
from qamdt.manifest import Record, read_manifest, write_manifest


SAMPLE_CORPUS_DIR = Path(__file__).resolve().parent / "sample_corpus"
SETTINGS = CorpusSettings(seed=2026)
NUM_PIECES = 25


def make_sample_corpus(
    folder: str | Path, *, num_pieces: int = NUM_PIECES, settings: CorpusSettings = SETTINGS
) -> Path:
    """Renders a corpus and writes it as Ogg Vorbis.

    Args:
        folder: Folder of the corpus; made if it does not exist.
        num_pieces: Number of pieces; some of them have a second, degraded clip.
        settings: What determines the pieces.

    Returns:
        The path of the manifest.
    """
    folder = Path(folder)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as rendered:
        records = read_manifest(render_corpus(rendered, num_pieces=num_pieces, settings=settings))
        originals = {
            record.tags["piece_id"]: _read(Path(rendered), record)
            for record in records
            if record.tags["degradation"] is None
        }
        compressed = [
            _compress(record, Path(rendered), folder, originals[record.tags["piece_id"]]) for record in records
        ]
    manifest_path = folder / "manifest.jsonl"
    write_manifest(manifest_path, compressed)
    return manifest_path


def _compress(record: Record, rendered: Path, folder: Path, original: np.ndarray) -> Record:
    """Writes one clip as Ogg Vorbis and returns its record with the score of what was written."""
    compressed = dataclasses.replace(record, path=f"audio/{record.id}.ogg", source="sample_corpus")
    write_audio(folder / compressed.path, _read(rendered, record), SAMPLING_RATE)
    score, frames = degradation_mos(original, _read(folder, compressed), SAMPLING_RATE)
    return dataclasses.replace(
        compressed,
        quality_score=round(score, 3),
        quality_frames=tuple(round(float(value), 2) for value in frames),
    )


def _read(folder: Path, record: Record) -> np.ndarray:
    return read_audio(folder / record.path).numpy()


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.make_sample_corpus", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", help="where the corpus goes")
    parser.add_argument("--num-pieces", type=int, default=NUM_PIECES, help="number of pieces (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        print(f"wrote {make_sample_corpus(arguments.folder, num_pieces=arguments.num_pieces)}")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
