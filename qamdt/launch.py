"""How a run is spread over processes: what Accelerate is told, and which settings go with which launch."""

import dataclasses
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn

from qamdt.checkpoints import store_trained_weights_alone
from qamdt.config import TrainConfig
from qamdt.cpu_memory import keep_freed_memory


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
    accelerator = Accelerator(cpu=is_cpu, mixed_precision=config.run.mixed_precision, kwargs_handlers=[ddp, patience])
    if is_cpu:
        keep_freed_memory()
    _check_fsdp(accelerator, config)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _check_deepspeed(config)
        accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.run.batch_size
    if config.lora is not None:
        store_trained_weights_alone(accelerator)
    return accelerator


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Returns the model and the optimizers as training uses them, spread over the processes."""
    is_fsdp_in_half = accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no"
    if is_fsdp_in_half:
        # FSDP would round what the network is given to half precision: times above 512 to multiples of 4.
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None
        )
    model, *optimizers = accelerator.prepare(model, *optimizers)
    if is_fsdp_in_half:  # in every other launch Accelerate does this
        model.forward = accelerator.autocast()(model.forward)
    return model, optimizers


def _check_fsdp(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuses what FSDP, or Accelerate with FSDP, would do wrong or not at all."""
    if accelerator.distributed_type != DistributedType.FSDP:
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.num_processes > 1:
            raise ValueError(
                "the launcher asks for FSDP, which Accelerate offers on GPUs alone, and there is none; launch with "
                "configs/accelerate/ddp.yaml."
            )
        return
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


def _check_deepspeed(config: TrainConfig) -> None:
    """Refuses what DeepSpeed's engine, which updates after each backward pass, cannot do."""
    if config.loss.passes == "both" or config.run.gradient_accumulation_steps > 1:
        raise ValueError(
            "DeepSpeed updates after each backward pass; set `loss.passes` to another than both and "
            "`run.gradient_accumulation_steps` to 1, or use DDP or FSDP."
        )
