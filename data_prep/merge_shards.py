"""Makes one result of those of all shards: of score files, or of a folder of latents.

    whisq score corpus/manifest.jsonl -o scores.jsonl --shard 0/4          # … to 3/4, on any machines
    python -m data_prep.merge_shards scores.jsonl                           # parts elsewhere: … scores.jsonl PART PART …

    python -m data_prep.encode_latents --manifest corpus/manifest.jsonl --shard 0/4
    python -m data_prep.merge_shards corpus/latents                         # folders elsewhere: … corpus/latents FOLDER …

The result is, byte for byte, that of one process. Shards that are missing, unfinished, or made with other settings or of
other clips are refused, and nothing is written then. Done again, it changes nothing.
"""

import argparse
import sys
from pathlib import Path

from data_prep.latent_merge import merge_latents
from whisq.scoring.merging import merge_parts


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="score file (.jsonl) or folder of latents to write or to complete")
    parser.add_argument("parts", type=Path, nargs="*", help="the shards (default: those beside the output)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.out.suffix == ".jsonl":
            said = f"{merge_parts(arguments.out, arguments.parts)} rows in {arguments.out}."
        else:
            report = merge_latents(arguments.out, arguments.parts)
            num_bad = 0 if report is None else report.num_bad
            said = f"{arguments.out}: {report or 'merged before'}." + f" {num_bad} bad clips." * (num_bad > 0)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
