"""Trains the CLAP and its audio tower: `accelerate launch -m whisq.train_clap --manifest m.jsonl --output-dir clap`.

Two losses at once: contrastive (each clip against the captions of the batch, and back), and the quality curve of each
clip from its tokens. The second keeps in the tokens what the scorer will need, which captions say nothing about; its
linear head is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from qamdt.files import append_json_line, claim_folder, cut_log, write_atomically
from qamdt.outputs import check_output_folder
from qamdt.run_control import forget_earlier_runs
from qamdt.settings import build, check_resumption
from whisq.modeling_clap import MiniClap
from whisq.ratings import write_faults
from whisq.training.clap_data import ClapBatch, ClapDataset


class ClapLoss(nn.Module):
    """Contrastive loss plus the error of the quality curve.

    Args:
        clap: The model to train.
        quality_weight: Weight of the Huber loss of each token's quality.
        bf16: Whether the audio tower runs in bfloat16.
    """

    def __init__(self, clap: MiniClap, quality_weight: float, bf16: bool):
        super().__init__()
        self.clap = clap
        self.quality_head = nn.Linear(clap.config.hidden_size, 1)
        self.quality_weight = quality_weight
        self.bf16 = bf16

    def forward(self, batch: ClapBatch) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts for a batch."""
        frame_mask = torch.ones(batch.mel_spectrogram.shape[:2], dtype=torch.bool, device=batch.group.device)
        with torch.autocast(batch.mel_spectrogram.device.type, torch.bfloat16, enabled=self.bf16):
            hidden_states, mask = self.clap.audio_tower(batch.mel_spectrogram, frame_mask)
        hidden_states = hidden_states.float()
        has_caption = batch.has_caption
        contrastive, accuracy = self._contrastive(
            self.clap.project_audio(hidden_states[has_caption], mask[has_caption]),
            self.clap.project_text(batch.sentence_embeddings[has_caption]),
            batch.group[has_caption],
        )
        known = ~batch.quality.isnan()
        predicted = 3.0 + self.quality_head(hidden_states)[:, :, 0]
        quality_error = nn.functional.huber_loss(predicted[known], batch.quality[known]) if known.any() else 0.0
        loss = contrastive + self.quality_weight * quality_error
        parts = {"contrastive": contrastive, "quality_error": torch.as_tensor(quality_error), "accuracy": accuracy}
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _contrastive(
        self, audio: torch.Tensor, text: torch.Tensor, group: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy both ways between unit vectors `(B, E)`; clips of one group share their captions."""
        logits = self.clap.logit_scale.clamp(max=4.6).exp() * audio @ text.T
        matches = (group[:, None] == group[None]).float()
        targets = matches / matches.sum(dim=1, keepdim=True)
        loss = (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets)) / 2
        accuracy = matches.gather(1, logits.argmax(dim=1, keepdim=True)).mean()
        return loss, accuracy


def learning_rate_share(step: int, num_steps: int, num_warmup_steps: int = 100) -> float:
    """Linear warm-up, then cosine decay to zero."""
    return min((step + 1) / num_warmup_steps, 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms and scales do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True, kw_only=True)
class ClapSettings:
    """What a run depends on; `music` stands for sounds, captions and quality."""

    music: str
    num_steps: int
    batch_size: int
    crop_in_s: float
    learning_rate: float
    quality_weight: float
    seed: int
    bf16: bool


def fit(
    loss_module: ClapLoss,
    dataset: ClapDataset,
    settings: ClapSettings,
    accelerator: Accelerator,
    output_dir: Path,
    *,
    max_minutes: float,
    checkpoint_minutes: float,
) -> None:
    """Trains, with a checkpoint every few minutes; goes on from the last one if it is of the same settings."""
    optimizer = torch.optim.AdamW(parameter_groups(loss_module, 0.05), lr=settings.learning_rate, betas=(0.9, 0.98))
    first_step = 0
    if (output_dir / "checkpoint.pt").is_file():
        first_step = resume(output_dir / "checkpoint.pt", loss_module, optimizer, settings)
    if accelerator.is_main_process:
        cut_log(output_dir / "losses.jsonl", "step", first_step - 1)
    model, optimizer = accelerator.prepare(loss_module, optimizer)
    seed = settings.seed * 1009 + accelerator.process_index
    batches = dataset.batches(settings.batch_size, settings.crop_in_s, seed, first_step)
    progress = tqdm(
        range(first_step, settings.num_steps),
        initial=first_step,
        total=settings.num_steps,
        disable=not accelerator.is_main_process or None,
    )
    started = last_saved = time.monotonic()
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_share(step, settings.num_steps)
        batch = next(batches)
        losses = model(ClapBatch(**{name: value.to(accelerator.device) for name, value in vars(batch).items()}))
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        is_last = step + 1 == settings.num_steps or time.monotonic() - started > 60 * max_minutes
        if accelerator.is_main_process and (step % 10 == 0 or is_last):
            values = {name: round(value.item(), 4) for name, value in losses.items()}
            progress.set_postfix(values)
            append_json_line(output_dir / "losses.jsonl", {"step": step, **values})
        if is_last or time.monotonic() - last_saved > 60 * checkpoint_minutes:
            if accelerator.is_main_process:
                save(accelerator.unwrap_model(model), optimizer, settings, step + 1, output_dir)
            last_saved = time.monotonic()
        if is_last:
            break


def resume(path: Path, loss_module: ClapLoss, optimizer: torch.optim.Optimizer, settings: ClapSettings) -> int:
    """Restores a checkpoint and returns its step.

    Raises:
        ValueError: It is of other settings than the length of the run, or of other music.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "settings" in state:
        started = build(ClapSettings, state["settings"])
        note = check_resumption(started, settings, free=("num_steps",), source=path)
    else:
        note = f"{path} comes from an earlier version and does not say its settings; taken to be the same."
    if note is not None:
        tqdm.write(note, file=sys.stderr)
    loss_module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(
    loss_module: ClapLoss, optimizer: torch.optim.Optimizer, settings: ClapSettings, step: int, output_dir: Path
) -> None:
    """Writes the checkpoint, whole or not at all, and the model folder."""
    state = {"model": loss_module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    state |= {"settings": asdict(settings)}
    write_atomically(output_dir / "checkpoint.pt", lambda file: torch.save(state, file))
    loss_module.clap.save_pretrained(output_dir / "clap")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="JSONL manifests of the clips")
    parser.add_argument("--output-dir", type=Path, required=True, help="receives cache, checkpoint, losses and model")
    parser.add_argument("--num-steps", type=int, default=4000, help="length of the schedule (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=96, help="crops per step and process (%(default)s)")
    parser.add_argument("--crop-in-s", type=float, default=7.68, help="length of a crop in seconds (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak value (%(default)s)")
    parser.add_argument("--quality-weight", type=float, default=1.0, help="weight of the quality curve (%(default)s)")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop in time; run again to go on")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0, help="between checkpoints (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="run the audio tower in bfloat16")
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Prepares the music, trains, and returns the exit status: 1 if some clips could not be used."""
    forget_earlier_runs()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    is_ours = any((arguments.output_dir / name).exists() for name in ("checkpoint.pt", "cache"))
    check_output_folder(arguments.output_dir, ["clap", "losses.jsonl", "faults.jsonl"], is_ours=is_ours)
    accelerator.wait_for_everyone()
    with claim_folder(arguments.output_dir, is_main_process=accelerator.is_main_process):
        return train_clap(arguments, accelerator)


def train_clap(arguments: argparse.Namespace, accelerator: Accelerator) -> int:
    """Does what `run` says, in a folder that no other run writes to."""
    with accelerator.main_process_first():  # which fills the cache
        dataset = ClapDataset(arguments.manifest, arguments.output_dir / "cache")
    if accelerator.is_main_process:
        faults_path = arguments.output_dir / "faults.jsonl"
        write_faults(faults_path, dataset.faults)
        if dataset.faults:
            print(f"{len(dataset.faults)} clips cannot be used, listed in {faults_path}.", file=sys.stderr)
    settings = ClapSettings(
        music=dataset.key(),
        num_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        crop_in_s=arguments.crop_in_s,
        learning_rate=arguments.learning_rate,
        quality_weight=arguments.quality_weight,
        seed=arguments.seed,
        bf16=arguments.bf16,
    )
    torch.manual_seed(arguments.seed)
    sample = torch.from_numpy(dataset.mel_spectrograms[:: max(1, len(dataset.clips) // 200)].astype("float32"))
    clap = MiniClap(mel_mean=round(sample.mean().item(), 3), mel_std=round(sample.std().item(), 3))
    fit(
        ClapLoss(clap, settings.quality_weight, settings.bf16),
        dataset,
        settings,
        accelerator,
        arguments.output_dir,
        max_minutes=arguments.max_minutes,
        checkpoint_minutes=arguments.checkpoint_minutes,
    )
    return int(bool(dataset.faults))


if __name__ == "__main__":
    sys.exit(main())
