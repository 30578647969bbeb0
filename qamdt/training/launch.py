"""How a run is spread over processes: what Accelerate is told, and which settings go with which launch."""

import contextlib
import dataclasses
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qamdt.cpu_memory import keep_freed_memory
from qamdt.precision import training_precision
from qamdt.run_control import forget_earlier_runs
from qamdt.training.checkpoints import store_trained_weights_alone
from qamdt.training.config import TrainConfig


def choose_precision(config: TrainConfig) -> tuple[TrainConfig, str]:
    """Decides `run.mixed_precision=auto` for this machine; returns the settings, and why, for people to read."""
    precision, reason = training_precision(config.run.mixed_precision)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, mixed_precision=precision)), reason


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Returns what distributes the run over the processes that `accelerate launch` or `torchrun` started."""
    # Without `cpu=True`, processes that torchrun started on a machine without a GPU would not find each other.
    is_cpu = not torch.accelerator.is_available()
    if is_cpu and config.run.mixed_precision == "fp16":
        # Accelerate would train in float32 without a word.
        raise ValueError("`run.mixed_precision` is fp16, which needs a GPU, and there is none; set it to bf16 or no.")
    # A full pass leaves the side interpolator without gradients, which DDP must be told.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=config.loss.passes in ("full", "alternate"))
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # the others wait while one writes or renders
    # DeepSpeed would train weights in half precision, and the averages would be of those.
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    mixed_precision = "no" if is_deepspeed else config.run.mixed_precision
    forget_earlier_runs()
    accelerator = Accelerator(cpu=is_cpu, mixed_precision=mixed_precision, kwargs_handlers=[ddp, patience])
    if is_cpu:
        keep_freed_memory()
    _check_accelerators(accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_fsdp(accelerator, config)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _check_deepspeed(accelerator, config)
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = config.run.batch_size
        settings["gradient_clipping"] = config.optim.max_grad_norm
    if config.lora is not None:
        store_trained_weights_alone(accelerator)
    return accelerator


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizers: list[torch.optim.Optimizer], mixed_precision: str
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Returns the model and the optimizers as training uses them, spread over the processes.

    Args:
        accelerator: What `make_accelerator` returned.
        model: The network, which computes in half precision from here on if it should.
        optimizers: Optimizers of its weights.
        mixed_precision: The precision of `run.mixed_precision`.
    """
    is_fsdp = accelerator.distributed_type == DistributedType.FSDP
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if mixed_precision != "no" and is_fsdp:
        # FSDP would round what the network is given to half precision: times above 512 to multiples of 4.
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None
        )
    if mixed_precision != "no" and (is_fsdp or is_deepspeed):  # in every other launch Accelerate does this
        dtype = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
        model.forward = torch.autocast(accelerator.device.type, dtype=dtype)(model.forward)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    return model, optimizers


def _check_accelerators(accelerator: Accelerator) -> None:
    """Refuses to train without the sharing that the launcher asks for, which Accelerate drops in silence."""
    for name, kind in (("FSDP", DistributedType.FSDP), ("DeepSpeed", DistributedType.DEEPSPEED)):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}") == "true" and accelerator.distributed_type != kind:
            raise ValueError(
                f"the launcher asks for {name}, which Accelerate offers on several GPUs alone, and this run has "
                f"{accelerator.num_processes} processes on {accelerator.device.type}; launch with "
                "configs/accelerate/ddp.yaml."
            )


def _check_fsdp(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuses what FSDP, or Accelerate with FSDP, would do wrong or not at all."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        # Its flat weights would end up in the averages.
        raise ValueError(
            f"FSDP must be of version 2, got {plugin.fsdp_version}; set `fsdp_version: 2` in the launcher's file, as "
            "configs/accelerate/fsdp2.yaml does."
        )
    if config.optim.optimizer == "muon":
        raise ValueError(
            "`optim.optimizer` is muon, which comes with a second optimizer, and Accelerate saves one with FSDP; set "
            "it to adamw or launch with configs/accelerate/ddp.yaml."
        )


def _check_deepspeed(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuses what DeepSpeed's engine, which updates after each backward pass, cannot do."""
    stage = accelerator.deepspeed_plugin.zero_stage
    if stage > 2:
        raise ValueError(
            f"`zero_stage` must be at most 2, as the weights are averaged whole, got {stage}; set it in the launcher's "
            "file, or launch with configs/accelerate/fsdp2.yaml, which spreads the weights too."
        )
    if config.loss.passes == "both" or config.run.gradient_accumulation_steps > 1:
        raise ValueError(
            f"`loss.passes` is {config.loss.passes} and `run.gradient_accumulation_steps` is "
            f"{config.run.gradient_accumulation_steps}, but DeepSpeed updates after each backward pass; set them to "
            "alternate, masked or full and to 1, or launch with configs/accelerate/fsdp2.yaml."
        )
    if config.optim.optimizer == "muon":
        raise ValueError(
            "`optim.optimizer` is muon, which comes with a second optimizer, and DeepSpeed takes one; set it to adamw or "
            "launch with configs/accelerate/ddp.yaml."
        )
    if config.run.mixed_precision == "fp16":
        raise ValueError(
            "`run.mixed_precision` is fp16, which DeepSpeed would not scale gradients for; set it to bf16."
        )


def attention_kernel(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Returns the context that attention runs in.

    On a CPU in bf16 the fused kernel's backward pass is so slow that plain matrix products, which are not fused, make
    the whole step 1.4 times faster at a few hundred tokens.
    """
    if device.type == "cpu" and mixed_precision == "bf16":
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # holds for CPU as well: products stay in bf16
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()
