"""What a training run takes, before it begins: parameters, memory, and how fast this machine is.

One block of the network is run forward and backward, here and now: on one crop to see what it keeps for the backward pass,
then on more and more crops to see how fast it gets. The rest is counted.
"""

import math
import time

import torch

from qamdt.models.transformer_qamdt import QAMDTBlock, QAMDTTransformer2DModel
from qamdt.training.config import OptimConfig, TrainConfig
from qamdt.training.launch import attention_kernel, choose_precision
from qamdt.training.network import add_adapter, read_model_config
from qamdt.training.optimizers import split_parameters


TEXT_TOKENS = 32
PATIENCE_IN_S = 0.4  # no larger batch is tried after a run that took longer
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def describe_run(config: TrainConfig) -> str:
    """Returns the lines that `--dry-run` prints below the settings."""
    config, reason = choose_precision(config)
    with torch.device("meta"):
        model = QAMDTTransformer2DModel(**read_model_config(config))
        if config.lora is not None:
            add_adapter(model, config.lora)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    crop = (config.data.crop_lengths[-1], model.config.sample_size[1])
    num_tokens = model.num_prefix_tokens + model.patch_embed.grid_size(crop)[0] * model.patch_embed.grid_size(crop)[1]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    bytes_kept, seconds = measure_block(model, num_tokens, config.run.batch_size, config.run.mixed_precision, device)
    memory = estimate_memory(model, config, num_tokens, bytes_kept)
    num_blocks = model.config.num_layers + (config.loss.passes != "full")
    tokens_per_s = num_tokens / (seconds * num_blocks * (4 / 3 if config.run.gradient_checkpointing else 1))

    parts = "\n".join(f"  {name:<34}{size / 2**30:8.2f} GiB" for name, size in memory.items())
    return (
        f"{num_parameters / 1e6:.2f} M parameters, {num_trained / 1e6:.2f} M of them train; "
        f"{num_tokens} tokens a crop.\n"
        f"Precision: {config.run.mixed_precision}, {reason}.\n"
        f"Memory of each process, estimated for batches of {config.run.batch_size}:\n{parts}\n"
        f"  {'together':<34}{sum(memory.values()) / 2**30:8.2f} GiB\n"
        f"About {in_digits(tokens_per_s)} tokens or {in_digits(tokens_per_s / num_tokens)} crops a second on this machine's "
        f"{device.type}, forward and backward through the full network, judged by one block."
    )


def estimate_memory(
    model: QAMDTTransformer2DModel, config: TrainConfig, num_tokens: int, bytes_kept: int
) -> dict[str, int]:
    """Estimates the bytes that each part of a training step takes at its peak.

    Args:
        model: The network, on the meta device or any other.
        config: The settings of the run.
        num_tokens: Tokens of a crop.
        bytes_kept: What one block keeps for the backward pass of one crop.
    """
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    dim = model.config.num_attention_heads * model.config.attention_head_dim
    num_blocks = model.config.num_layers + 1  # the side interpolator
    block_input = num_tokens * dim * 4
    if config.run.gradient_checkpointing:
        # Each block keeps its input and its skip; one block at a time has everything.
        activations = num_blocks * 2 * block_input + bytes_kept
    else:
        activations = num_blocks * bytes_kept
    return {
        "weights": 4 * num_parameters,
        "their copies in half precision": 0 if config.run.mixed_precision == "no" else 2 * num_parameters,
        "gradients": 4 * num_trained,
        "optimizer": _optimizer_bytes(model, config.optim),
        "averaged weights": 4 * num_trained * (1 + len(config.optim.ema_snapshot_lengths or [])),
        "activations": config.run.batch_size * activations,
        # Gradients of one block's activations, while they are computed.
        "workspace": config.run.batch_size * bytes_kept,
    }


def measure_block(
    model: QAMDTTransformer2DModel, num_tokens: int, batch_size: int, mixed_precision: str, device: torch.device
) -> tuple[int, float]:
    """Runs a block forward and backward.

    Args:
        model: The network, on the meta device or any other.
        num_tokens: Tokens of a crop.
        batch_size: The most crops at once.
        mixed_precision: As `run.mixed_precision`.
        device: Where to compute.

    Returns:
        The bytes that it keeps for the backward pass of one crop, without weights, and the least seconds a crop takes.
    """
    dim = model.config.num_attention_heads * model.config.attention_head_dim
    block = QAMDTBlock(dim, model.config.num_attention_heads, model.config.mlp_ratio, has_skip=True).to(device)
    dtype = DTYPES.get(mixed_precision)

    def run(num_crops: int) -> float:
        """Returns the seconds that one run takes."""
        inputs = torch.randn(num_crops, num_tokens, dim, device=device, requires_grad=True)
        modulation = torch.randn(num_crops, 6, dim, device=device)
        texts = torch.randn(num_crops, TEXT_TOKENS, dim, device=device)
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output = block(inputs, modulation, texts, skip=inputs)
        output.float().sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    weight_shapes = {shape for weight in block.parameters() for shape in (weight.shape, weight.shape[::-1])}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weight_shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # With the kernel that a GPU takes, as the question is whether the run fits into one.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(1)

    num_crops, seconds_per_crop = 1, math.inf
    with attention_kernel(device, mixed_precision):
        while True:
            seconds = min(run(num_crops), run(num_crops))  # the first run of a size is slow
            seconds_per_crop = min(seconds_per_crop, seconds / num_crops)
            if num_crops == batch_size or seconds > PATIENCE_IN_S:
                return sum(kept.values()), seconds_per_crop
            num_crops = min(2 * num_crops, batch_size)


def in_digits(value: float) -> str:
    """A positive number in two digits or, from ten on, as a whole one: never 0, however slow the machine."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _optimizer_bytes(model: QAMDTTransformer2DModel, config: OptimConfig) -> int:
    hidden, others = (sum(parameter.numel() for parameter in group) for group in split_parameters(model))
    if config.optimizer == "muon":
        return 4 * hidden + 8 * others
    return (2 if config.optimizer == "adamw8bit" else 8) * (hidden + others)
