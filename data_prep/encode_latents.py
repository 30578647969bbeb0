"""Encodes the clips of a manifest once, so that training never runs the autoencoder or the text encoder.

    python -m data_prep.encode_latents --manifest corpus/manifest.jsonl
    accelerate launch data_prep/encode_latents.py --manifest corpus/manifest.jsonl --vae VAE_FOLDER --out corpus/latents

For each clip: mean and standard deviation of the VAE posterior, which training samples from. For each distinct text that
training can ask for: the states of the text encoder. Both are kept under all that they depend on, and everything else is
taken from the manifest each time. So the same command again does what is missing, after a kill too; a manifest with new
labels, scores or captions costs no encoding of clips; and a clip whose audio or span changed, or another autoencoder, is
encoded anew beside what was there. `--clean` removes what the manifest no longer needs.

With `accelerate launch` or `torchrun`, every process encodes its share on its own device; jobs that do not know of each
other take `--shard 0/4` to `3/4`, and `data_prep.merge_shards` joins them. Clips that cannot be encoded,
and lines of the manifest that describe none, are counted, listed in `bad_clips.jsonl`, and make the exit status 1.
"""

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from data_prep.latent_encoders import DTYPES
from data_prep.latent_update import TEXT_MODES, EncodingOptions, encode_corpus
from qamdt.cpu_memory import keep_freed_memory
from qamdt.latent_folder import find_unnamed_files, open_folder
from qamdt.work_share import SHARD_HELP, read_shard


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of the corpus")
    parser.add_argument("--out", type=Path, help="folder to write or complete (default: latents beside the manifest)")
    parser.add_argument("--vae", help="folder of the autoencoder (default: the embedded one)")
    parser.add_argument("--text-encoder", help="folder or Hub id of a text encoder (default: the embedded one)")
    parser.add_argument(
        "--quality-stats", help="quality statistics whose thresholds to keep (default: those beside the manifest)"
    )
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--limit", type=int, help="only so many clips, for a trial")
    parser.add_argument("--max-captions", type=int, help="captions of a clip to use at most (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the autoencoder computes in")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clips-per-shard", type=int, default=512)
    parser.add_argument("--device", help="where to compute (default: this process's accelerator, else the CPU)")
    parser.add_argument(
        "--clean", action="store_true", help="remove files that the new index does not name; no training may read them"
    )
    parser.add_argument(
        "--shard", type=read_shard, help=f"{SHARD_HELP}; python -m data_prep.merge_shards OUT joins them"
    )
    parser.add_argument(
        "--text",
        choices=TEXT_MODES,
        default="cached",
        help="online: keep no text states, train with data.text=online (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    options = EncodingOptions(
        vae=arguments.vae,
        text_encoder=arguments.text_encoder,
        quality_stats=arguments.quality_stats,
        split=arguments.split,
        limit=arguments.limit,
        max_captions=arguments.max_captions,
        dtype=arguments.dtype,
        text=arguments.text,
    )
    out = arguments.out or arguments.manifest.parent / "latents"
    keep_freed_memory()
    try:
        report = encode_corpus(
            arguments.manifest,
            out,
            options,
            batch_size=arguments.batch_size,
            clips_per_shard=arguments.clips_per_shard,
            device=arguments.device,
            clean=arguments.clean,
            shard=arguments.shard,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.shard is not None:
        print(f"{report}. When all {arguments.shard[1]} shards are done: python -m data_prep.merge_shards {out}")
    elif PartialState().is_main_process:
        index = open_folder(out).index
        print(f"{report}.")
        print(
            f"{index['num_clips']} clips and {index['num_texts']} texts in {out}; scaling factor "
            f"{index['scaling_factor']:.5f} (the autoencoder's config says {index['vae_scaling_factor']:.5f})."
        )
        if unnamed := find_unnamed_files(out):
            size = sum(path.stat().st_size for path in unnamed) / 1e6
            print(f"{len(unnamed)} files of earlier runs, {size:.1f} MB, are not in use; `--clean` removes them.")
        if report.num_bad:
            print(f"{report.num_bad} bad clips, listed in {out / 'bad_clips.jsonl'}.", file=sys.stderr)
    return int(report.num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
