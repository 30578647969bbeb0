"""How well the embedded CLAP tells which caption belongs to a clip.

    python -m benchmarks.clap_alignment --manifest corpus/manifest.jsonl

Takes the clips of the test split and prints: how often a clip's own caption is more similar than that of a random other
clip, and than that of a clip that shares neither style nor instruments; how often one of the clip's captions is the
most similar of all (chance is one in the number of clips); mean similarities of both kinds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qamdt.audio import read_audio
from qamdt.manifest import read_manifest
from whisq.embedded import load_clap
from whisq.modeling_clap import MiniClap


def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--clap", type=Path, help="folder of another CLAP (the embedded one)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--degraded", action="store_true", help="degraded clips in place of clean ones")
    parser.add_argument("--max-clips", type=int, default=200)
    arguments = parser.parse_args(argv)
    clap = MiniClap.from_pretrained(arguments.clap).eval() if arguments.clap else load_clap()
    records = [
        record
        for record in read_manifest(arguments.manifest)
        if record.tags.get("split") == arguments.split
        and bool(record.tags.get("degradation")) == arguments.degraded
        and record.captions
    ][: arguments.max_clips]
    generator = np.random.default_rng(0)
    captions = [record.captions[generator.integers(len(record.captions))] for record in records]
    root = arguments.manifest.parent
    audio = torch.cat([clap.embed_audio(read_audio(root / record.path)[None]) for record in tqdm(records)])
    similarity = clap.similarity(audio, clap.embed_text(captions)).numpy()

    own = np.diag(similarity)
    is_other = np.array([[a is not b and not set(a.captions) & set(b.captions) for b in records] for a in records])
    is_foreign = is_other & np.array(
        [
            [
                a.tags["style"] != b.tags["style"] and not set(a.tags["instruments"]) & set(b.tags["instruments"])
                for b in records
            ]
            for a in records
        ]
    )
    result = {
        "num_clips": len(records),
        "own_above_random": round(float((own[:, None] > similarity)[is_other].mean()), 3),
        "own_above_foreign": round(float((own[:, None] > similarity)[is_foreign].mean()), 3),
        "own_is_first": round(float((similarity.argmax(axis=1) == np.arange(len(records))).mean()), 3),
        "mean_similarity_own": round(float(own.mean()), 3),
        "mean_similarity_random": round(float(similarity[is_other].mean()), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
