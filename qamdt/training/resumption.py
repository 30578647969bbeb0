"""What a resumed training may change: how it goes on, but not what its weights mean.

A checkpoint carries the settings it was trained with and an identity of its data. The network, what it predicts, the noise
schedule, the scaling of the latents, the clips and what is said about them belong to the weights: another value is refused.
"""

from pathlib import Path
from typing import Any

from qamdt.settings import check_resumption, load_settings
from qamdt.training.config import TrainConfig
from qamdt.training.dataset import LatentDataset


FREE_SETTINGS = frozenset(
    f"{group}.{name}"
    for group, names in {
        # How long the run lasts, how it computes, and what it leaves behind.
        "run": "output_dir pipeline max_steps max_minutes batch_size gradient_accumulation_steps mixed_precision compile "
        "gradient_checkpointing checkpoint_minutes checkpoint_steps num_checkpoints log_steps log_with",
        "preview": "prompts quality steps audio_length_in_s num_inference_steps guidance_scale seed",
        # How large its steps are. Weight decay and moments are restored with the optimizer, so another value would be
        # ignored; which lengths of averages can go on, `SnapshotAverages` knows.
        "optim": "learning_rate muon_learning_rate warmup_steps schedule decay_share max_grad_norm ema_decay "
        "ema_snapshot_lengths ema_snapshot_steps",
        # What weighs how much and is drawn how often; another number of crop lengths is refused by `EpochSampler`.
        "loss": "min_snr_gamma passes timestep_sampling min_mask_ratio max_mask_ratio",
        "data": "prefix_probability text_dropout quality_dropout clip_quality_dropout frame_quality_dropout "
        "global_quality_dropout rhythm_dropout key_dropout chord_dropout level_weights crop_in_frames window_in_shards "
        # Where the data lies, as long as it is the same data.
        "latents manifest text cache_dir num_workers",
    }.items()
    for name in names.split()
)


def describe_data(dataset: LatentDataset) -> dict[str, Any]:
    """Returns what a checkpoint says about its data."""
    return {
        "identity": dataset.identity,
        "latents": dataset.folder.name,
        "num_clips": len(dataset.latents),
    }


def check_same_run(checkpoint: Path, state: dict[str, Any], config: TrainConfig, dataset: LatentDataset) -> str | None:
    """Refuses to resume from a checkpoint with settings or data that give its weights another meaning.

    Args:
        checkpoint: The checkpoint.
        state: What was saved with it.
        config: The settings that the run is to be resumed with.
        dataset: The data.

    Returns:
        A line that says which settings changed; `None` when all are the same.

    Raises:
        ValueError: A setting differs that must not, or the data does.
    """
    path = checkpoint / "config.yaml"
    line = None
    if path.is_file():  # older versions did not always write one
        started = load_settings(TrainConfig, path)
        line = check_resumption(started, config, free=FREE_SETTINGS, source=path)
        if "data" not in state and _source(started) != _source(config):
            _refuse_data(checkpoint, _source(started), _source(config))
    if state["scaling_factor"] != dataset.scaling_factor:
        raise ValueError(
            f"the run was started with latents scaled by {state['scaling_factor']}, now `data.latents` says "
            f"{dataset.scaling_factor}; set `data.scaling_factor` to the former or start a new `run.output_dir`."
        )
    before, now = state.get("data"), describe_data(dataset)
    if before is not None and before["identity"] != now["identity"]:
        _refuse_data(checkpoint, *(f"{data['num_clips']} clips in {data['latents']}" for data in (before, now)))
    return line


def _source(config: TrainConfig) -> str | None:
    return config.data.manifest or config.data.latents


def _refuse_data(checkpoint: Path, before: str | None, now: str | None) -> None:
    raise ValueError(
        f"the run was started on other data: `data.manifest` or `data.latents` was {before}, now it is {now}, with other "
        "clips, or other captions, scores or thresholds of theirs. Give the data of before, or another `run.output_dir` "
        f"with `run.init_from={checkpoint}`, which goes on from these weights."
    )
