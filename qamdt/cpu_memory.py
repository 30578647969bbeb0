"""Keeps freed memory inside the process, which makes PyTorch on a CPU faster on glibc systems."""

import ctypes
import platform


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_TWO_GIB = 2**31 - 1
_QUARTER_GIB = 2**28


def keep_freed_memory() -> bool:
    """Asks glibc to reuse large freed blocks and not to return them to the kernel.

    PyTorch allocates every activation anew. By default glibc gives blocks above 32 MiB back at once, so each step
    touches fresh pages, and the kernel must zero and map every one of them. Commands call this once at start; a
    library never should, which is why nothing here happens at import. `benchmarks/freed_memory.py` measures it; how
    much it saves depends on how busy the machine's memory is.

    Returns:
        Whether the setting was made; `False` on systems without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _M_MMAP_THRESHOLD: _TWO_GIB,
        _M_TRIM_THRESHOLD: _TWO_GIB,
        _M_TOP_PAD: _QUARTER_GIB,
        _M_ARENA_MAX: 1,  # the thread of the backward pass would get an arena of its own, which cannot grow past 64 MiB
    }
    return all(mallopt(option, value) == 1 for option, value in settings.items())


def return_freed_memory() -> None:
    """Asks glibc to return freed memory to the kernel now; does nothing on systems without glibc.

    Batches of many sizes leave holes that the next one does not fit into, so a long job would hold ever more memory.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
