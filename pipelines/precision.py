"""Which precision the transformer runs in on a CPU.

bfloat16 halves the work of matrix products where the CPU has instructions for it (AVX512-BF16, AMX) and multiplies it
where it has not. Whether it has them is asked, not timed: the same machine must give the same music for the same seed
every time. What it gains, and that it changes the sound far less than another seed does, is measured by
`benchmarks/cpu_precision.py`.
"""

from __future__ import annotations

import torch


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    # torch has no public name for these questions yet; an older release that cannot answer means no.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, lambda: False)() for question in questions)


def preferred_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype in which the transformer is fastest on `device` without loss that could be heard."""
    if torch.device(device).type == "cpu":
        return torch.bfloat16 if has_bf16_instructions() else torch.float32
    return torch.bfloat16 if torch.get_device_module(device).is_bf16_supported() else torch.float32
