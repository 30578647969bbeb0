"""What the states of a corpus' texts cost, cached on disk or encoded while training; judged by its first clips."""

import itertools
import shutil
import time
from pathlib import Path

import numpy as np

from data_prep.latent_encoders import load_text_encoder
from data_prep.latent_index import list_training_texts
from data_prep.latent_units import read_states
from data_prep.latent_update import EncodingOptions
from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from qamdt.latent_folder import INDEX_NAME, open_folder
from qamdt.manifest import scan_manifest
from qamdt.quality import QualityStats
from qamdt.training.config import DataConfig


NUM_CLIPS = 256
NUM_TEXTS = 64
MOST_OF_DISK = 0.5  # of what is free may be taken by cached states


def describe_text_costs(data: DataConfig, batch_size: int) -> str:
    """Returns the lines of `--dry-run` about texts: what `data.text=cached` and `online` take of disk and time.

    Cached states are worth their disk while they take at most half of what is free; beyond, online is advised.

    Args:
        data: Where the corpus lies.
        batch_size: Clips in a batch of one process.
    """
    manifest = SAMPLE_CORPUS_DIR / "manifest.jsonl" if data.manifest == "sample" else Path(data.manifest or "")
    if not manifest.is_file():
        return "Texts: what they cost is told for a `data.manifest` that is there."
    lines = list(itertools.islice(scan_manifest(manifest), NUM_CLIPS))
    records = [line.record for line in lines if line.record is not None]
    if not records:
        return f"Texts: the first lines of {str(manifest)!r} describe no clip."
    num_clips = round(manifest.stat().st_size / sum(len(line.text) for line in lines) * len(records))
    folder = data.latents or str(manifest.parent / "latents")
    options, stats = EncodingOptions(), _find_stats(manifest)
    if "://" not in folder and (Path(folder) / INDEX_NAME).is_file():
        index = open_folder(folder).index
        options = EncodingOptions(**index.get("options", {}))
        stats = None if index["quality"] is None else QualityStats.from_dict(index["quality"])
    texts = [set(list_training_texts(record, stats, options.max_captions)) - {""} for record in records]
    texts_per_clip = float(np.mean([len(some) for some in texts]))
    some_texts = list(itertools.islice(itertools.chain.from_iterable(map(sorted, texts)), NUM_TEXTS)) or [""]

    tokenizer, encoder = load_text_encoder(options.text_encoder)
    read_states(some_texts[:2], tokenizer, encoder, max_tokens=options.max_text_tokens)  # the first call is slow
    start = time.perf_counter()
    states = read_states(some_texts, tokenizer, encoder, max_tokens=options.max_text_tokens)
    seconds = (time.perf_counter() - start) / len(some_texts)
    num_texts = num_clips * texts_per_clip
    num_bytes = num_texts * float(np.mean([state.numel() for state in states])) * 2
    free = shutil.disk_usage(manifest.parent).free
    advised = "cached" if num_bytes <= MOST_OF_DISK * free else "online"
    return (
        f"Texts: about {num_clips:,} clips with {texts_per_clip:.1f} texts each, judged by the first {len(records)}.\n"
        f"  data.text=cached: {num_bytes / 1e9:,.3g} GB on disk ({free / 1e9:,.0f} GB are free), "
        f"{num_texts * seconds / 3600:,.2g} hours once on this machine's CPU.\n"
        f"  data.text=online: nothing on disk, at most {1000 * seconds * batch_size:,.0f} ms for each batch of "
        f"{batch_size} on this machine's CPU.\n"
        f"  Advised: {advised}, as states that are cached may take half of the free disk."
    )


def _find_stats(manifest: Path) -> QualityStats | None:
    beside = manifest.with_suffix(".quality.json")
    return QualityStats.load(beside) if beside.is_file() else None
