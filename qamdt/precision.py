"""Which devices this machine has, and in which precision they are fastest.

bfloat16 halves the work of matrix products where the CPU has instructions for it (AVX512-BF16, AMX) and multiplies it
where it has not. Whether it has them is asked, not timed: the same machine must give the same music for the same seed
every time. What it gains, and that it changes the sound far less than another seed does, is measured by
`benchmarks/cpu_precision.py`.
"""

from __future__ import annotations

import torch


def check_device(device: torch.device | str) -> torch.device:
    """Returns a device that this machine has.

    Raises:
        ValueError: It has no such device, or what is given names none.
    """
    here = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        here += [f"{kind}:{number}" for number in range(torch.accelerator.device_count())]
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    # A device without number is the current one, which is there if any of its kind is; accelerate numbers the CPU.
    is_here = str(found) in {"cpu:0", *here, *(name.split(":")[0] for name in here)}
    if found is None or not is_here:
        raise ValueError(f"`device` must be among {', '.join(here)}, which this machine has, got {str(device)!r}.")
    return found


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


def training_precision(setting: str) -> tuple[str, str]:
    """Decides on `run.mixed_precision=auto`.

    Args:
        setting: `"auto"`, or a precision, which stays.

    Returns:
        The precision, and why, for people to read.
    """
    if setting != "auto":
        return setting, "as set"
    if torch.accelerator.is_available():
        dtype = preferred_dtype(torch.accelerator.current_accelerator())
        return (
            ("bf16", "this accelerator has it") if dtype == torch.bfloat16 else ("no", "no bf16 on this accelerator")
        )
    if has_bf16_instructions():
        return "bf16", "this processor has instructions for it"
    return "no", "this processor has no bf16 instructions, so float32 is faster, inside Muon too"
