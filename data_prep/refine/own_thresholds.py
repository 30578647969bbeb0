"""The thresholds of a data set, derived from its own clips once and kept for all later runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.refine.clean import clean_text, why_not_a_caption
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.run import RefineRun
from data_prep.refine.step_runner import read_embedding
from data_prep.refine.thresholds import MIN_CLIPS, Thresholds, derive_thresholds, read_thresholds
from qamdt.audio import read_audio
from qamdt.files import write_json
from qamdt.keyed_rows import DONE, make_key
from qamdt.manifest import resolve_clip_path
from whisq.clap import Clap


MAX_CLIPS = 1000  # every pair of them is compared


def sample_positions(manifest: ManifestRows) -> list[int]:
    """Returns positions spread evenly over a manifest, the same ones for every shard."""
    count = min(len(manifest), MAX_CLIPS)
    return [i * len(manifest) // count for i in range(count)]


def settle_thresholds(run: RefineRun, clap: Clap, stand_in: Path) -> tuple[Thresholds, str]:
    """Returns the data set's thresholds and where they come from, in words.

    They are derived from clips spread over the whole data set, which must be through step `generate`, and written to a
    file that later runs and all shards read: a data set that grows keeps its thresholds.

    Args:
        run: The run.
        clap: Embeds the captions.
        stand_in: Manifest of a corpus that speaks for a data set too small to derive anything from.
    """
    path = _stored_at(run)
    if path.is_file():
        return read_thresholds(path), f"from {path}"
    pairs = list(_iterate_pairs(run))
    source = f"derived from {len(pairs)} of its own clips"
    if len(pairs) < MIN_CLIPS:
        source = (
            f"derived from the sample corpus, since only {len(pairs)} of its own clips have a caption of their own"
        )
        pairs = list(_iterate_stand_in(ManifestRows(stand_in), clap))
    embeddings = np.stack([embedding for _, embedding in pairs])  # (N, E)
    thresholds = derive_thresholds(embeddings, clap.embed_text([text for text, _ in pairs]))
    write_json(path, thresholds.to_dict())
    return thresholds, source


def guess_thresholds(run: RefineRun) -> Thresholds:
    """Returns the thresholds of earlier runs, or some that no run used, for looking up what is done."""
    path = _stored_at(run)
    return read_thresholds(path) if path.is_file() else Thresholds(audio_text=-1.0)


def _stored_at(run: RefineRun) -> Path:
    return run.folder / f"thresholds-{make_key(run.clap_name):016x}.json"


def _iterate_pairs(run: RefineRun) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the first caption and the audio embedding `(E,)` of the sampled clips, no caption twice."""
    seen = set()
    for _, record in run.manifest.read_good(sample_positions(run.manifest)):
        key = run.make_keys(record)["generate"]
        text = _first_caption(record.captions)
        if text is not None and text not in seen and run.stores["generate"].status(key) == DONE:
            seen.add(text)
            yield text, read_embedding(run.stores["generate"].read(key))


def _iterate_stand_in(manifest: ManifestRows, clap: Clap) -> Iterator[tuple[str, np.ndarray]]:
    seen = set()
    for _, record in manifest.read_good(range(len(manifest))):
        text = _first_caption(record.captions)
        if text is not None and text not in seen:
            seen.add(text)
            waveform = read_audio(resolve_clip_path(manifest.path, record), clap.sampling_rate).numpy()
            yield text, clap.embed_audio([waveform], clap.sampling_rate)[0]


def _first_caption(captions: tuple[str, ...]) -> str | None:
    """Returns the first caption that can be read as one."""
    return next((clean_text(caption) for caption in captions if why_not_a_caption(caption) is None), None)
