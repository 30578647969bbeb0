"""Work that independent jobs share without knowing of each other: `--shard i/n` is the first to the last of n parts."""

import argparse


SHARD_HELP = "i/n: only the first (0/n) to the last (n-1/n) of n parts, each of which may be a job of its own"


def read_shard(text: str) -> tuple[int, int]:
    """Reads "0/4" as the first of four parts, for an option of a command."""
    number, slash, count = text.partition("/")
    is_pair = slash and number.isascii() and count.isascii() and number.isdigit() and count.isdigit()
    if not is_pair or not int(number) < int(count) <= 99_999:
        raise argparse.ArgumentTypeError(f"must be i/n with 0 <= i < n, as in 0/4 for the first of four, got {text!r}")
    return int(number), int(count)
