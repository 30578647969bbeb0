"""What a training step costs, in one run that takes turns: this trainer, a plain DiT, and encoding inside the loop.

    python -m benchmarks.train_throughput --config mini --batch-size 8 --rounds 5

Four kinds of step on the same clips of the sample corpus, each forward, backward and update:

    unmasked         this trainer through the full network, from cached latents and text states
    masked           the same with half of the patches hidden from the encoder
    diffusers DiT    `PixArtTransformer2DModel` of equal width, depth and tokens, from the same cache
    in the loop      the unmasked step, but sound files are read and encoded by autoencoder and text encoder each time

and, apart from any step, what getting a batch costs: "batch from cache" against "batch encoded". Medians of CPU-seconds
over the rounds, as other jobs change those least, and each relative to the unmasked step.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import nn

from data_prep.latent_update import encode_corpus
from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from qamdt.audio import SAMPLING_RATE, LogMel, normalize_waveform, read_audio
from qamdt.embedded import default_model_dir, load_text_encoder
from qamdt.encoding import encode_waveforms
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.training.config import DataConfig, LossConfig, load_config
from qamdt.training.dataset import Batch, LatentDataset, collate
from qamdt.training.loss import NoiseSchedule, diffusion_loss, draw
from qamdt.training.sampling import EpochSampler


LOSS = LossConfig(min_snr_gamma=None, min_mask_ratio=0.5, max_mask_ratio=0.5)


class FoldedDiT(nn.Module):
    """The DiT of diffusers on the same tokens: each patch of the latents becomes one position with more channels.

    Args:
        config: Config of the network it stands beside.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.patch_size = tuple(config["patch_size"])
        self.channels = config["in_channels"] * self.patch_size[0] * self.patch_size[1]
        self.dit = PixArtTransformer2DModel(
            num_attention_heads=config["num_attention_heads"],
            attention_head_dim=config["attention_head_dim"],
            in_channels=self.channels,
            out_channels=self.channels,
            num_layers=config["num_layers"],
            cross_attention_dim=config["num_attention_heads"] * config["attention_head_dim"],
            caption_channels=config["cross_attention_dim"],
            sample_size=config["sample_size"][0] // self.patch_size[0],
            patch_size=1,
            use_additional_conditions=False,
        )

    def forward(self, hidden_states, timestep, encoder_hidden_states, encoder_attention_mask, **ignored):
        """Takes what the network it stands beside takes; quality is unknown to it."""
        B, C, T, F = hidden_states.shape
        p, q = self.patch_size
        folded = hidden_states.view(B, C, T // p, p, F // q, q).permute(0, 1, 3, 5, 2, 4)
        output = self.dit(
            folded.reshape(B, self.channels, T // p, F // q),
            encoder_hidden_states,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )[0]
        return (output.view(B, C, p, q, T // p, F // q).permute(0, 1, 4, 2, 5, 3).reshape(B, C, T, F),)


def batches_from_cache(dataset: LatentDataset, batch_size: int) -> Iterator[Batch]:
    """Yields batches as training reads them."""
    for draws in EpochSampler(dataset.buckets(), batch_size=batch_size, seed=0):
        yield collate([dataset[draw] for draw in draws])


class LoopEncoder:
    """Encodes the clips of a batch anew, as a trainer without a cache must.

    Args:
        dataset: Says which clips and texts.
    """

    def __init__(self, dataset: LatentDataset):
        self.paths = {record.id: record.path for record in dataset.latents.records}
        self.scaling_factor = dataset.scaling_factor
        self.vae = AutoencoderKL.from_pretrained(default_model_dir() / "vae").eval()
        self.tokenizer, self.text_encoder = load_text_encoder()
        self.log_mel = LogMel()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        waveforms = torch.stack([read_audio(SAMPLE_CORPUS_DIR / self.paths[id], SAMPLING_RATE) for id in batch.ids])
        posterior = encode_waveforms(self.vae, normalize_waveform(waveforms), self.log_mel)
        latents = posterior.sample()[:, :, : batch.latents.shape[2]] * self.scaling_factor
        tokens = self.tokenizer(batch.captions, padding=True, return_tensors="pt")
        states = self.text_encoder(**tokens).last_hidden_state
        conditions = replace(batch.conditions, texts=states, mask=tokens["attention_mask"].bool())
        return replace(batch, latents=latents, conditions=conditions)


def make_step(model: nn.Module, config: dict, batches: Iterator[Batch], *, is_masked: bool, encode=None) -> Callable:
    """Returns a function that does one update and returns its CPU-seconds."""
    optimizer, schedule = torch.optim.AdamW(model.parameters(), lr=1e-4), NoiseSchedule(LOSS)
    grid = [size // patch for size, patch in zip(config["sample_size"], config["patch_size"], strict=True)]

    def step() -> None:
        batch = next(batches)
        if encode is not None:
            batch = encode(batch)
        draws = draw(batch, grid[0] * grid[1], LOSS, mask_seed=0)
        loss = diffusion_loss(model, batch, draws, schedule, LOSS, model_config=config, is_masked=is_masked)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step)


def timed(function: Callable) -> Callable[[], float]:
    """Returns a function that calls another and returns the CPU-seconds it took."""

    def call() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return call


def measure(config_name: str, latents: Path, batch_size: int, rounds: int) -> dict:
    """Takes turns between the kinds of step and returns the medians."""
    encode_corpus(SAMPLE_CORPUS_DIR / "manifest.jsonl", out=latents)
    config = {**QAMDTTransformer2DModel(**load_config(config_name).model).config}
    dataset = LatentDataset(DataConfig(latents=str(latents), crop_in_frames=config["sample_size"][0]), seed=0)
    models = {"ours": QAMDTTransformer2DModel(**config_arguments(config)), "diffusers": FoldedDiT(config)}
    batches = batches_from_cache(dataset, batch_size)
    steps = {
        "unmasked": make_step(models["ours"], config, batches, is_masked=False),
        "masked": make_step(models["ours"], config, batches, is_masked=True),
        "diffusers DiT": make_step(models["diffusers"], config, batches, is_masked=False),
        "in the loop": make_step(models["ours"], config, batches, is_masked=False, encode=LoopEncoder(dataset)),
    }
    encode = LoopEncoder(dataset)
    steps |= {
        "batch from cache": timed(lambda: next(batches)),
        "batch encoded": timed(lambda: encode(next(batches))),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(rounds + 1):
        for kind, step in steps.items():
            taken = step()
            if turn > 0:  # the first turn warms up
                seconds[kind].append(taken)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "config": config_name,
        "batch_size": batch_size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "seconds": {kind: [round(value, 4) for value in values] for kind, values in seconds.items()},
        "median_s": {kind: round(value, 4) for kind, value in medians.items()},
        "relative_to_unmasked": {kind: round(value / medians["unmasked"], 3) for kind, value in medians.items()},
    }


def config_arguments(config: dict) -> dict:
    """Returns the arguments of the network without what diffusers adds to its config."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mini", help="preset whose network is measured (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latents", type=Path, help="where the sample corpus is encoded to (default: thrown away)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        numbers = measure(
            arguments.config, arguments.latents or Path(temporary), arguments.batch_size, arguments.rounds
        )
    for kind, median in numbers["median_s"].items():
        print(f"{kind:<18}{median:8.3f} CPU-s{numbers['relative_to_unmasked'][kind]:8.2f} x unmasked")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
