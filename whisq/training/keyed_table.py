"""A table on disk whose rows are found again by what they were computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from qamdt.files import replacing


def open_table(
    path: Path,
    keys: Sequence[int],
    shape: tuple[int, ...],
    compute: Callable[[list[int]], Iterable[np.ndarray | None]],
) -> np.ndarray:
    """Returns a table whose row i is that of `keys[i]`; rows that the file holds under their keys are not computed.

    Args:
        path: `.npy` file of the table; it is brought up to date.
        keys: What each row depends on, see `qamdt.keyed_rows.make_key`.
        shape: Shape of one row.
        compute: Yields the rows of the given numbers one after the other, `None` for one that cannot be computed; the
            table then holds zeros, and the next call tries again.

    Returns:
        Values `(len(keys), *shape)` in float16, memory-mapped.
    """
    row_type = np.dtype([("key", np.uint64), ("values", np.float16, shape)])
    wanted = np.array(keys, np.uint64)
    found = np.load(path, mmap_mode="r") if path.is_file() else np.zeros(0, row_type)
    if found.dtype != row_type:  # rows of another shape
        found = np.zeros(0, row_type)
    if np.array_equal(found["key"], wanted):
        return found["values"]
    places = {key: place for place, key in enumerate(found["key"].tolist())}
    missing = [number for number, key in enumerate(wanted.tolist()) if key not in places]
    with replacing(path) as temporary:
        table = np.lib.format.open_memmap(temporary, "w+", row_type, wanted.shape)
        table["key"] = wanted
        for number, key in enumerate(wanted.tolist()):
            if key in places:
                table["values"][number] = found["values"][places[key]]
        for number, values in zip(missing, compute(missing), strict=True):
            if values is None:
                table["key"][number] = 0  # which is nothing's key
            else:
                table["values"][number] = values
        table.flush()
    return np.load(path, mmap_mode="r")["values"]
