"""Puts separately trained parts together to a model folder that `QAMDTPipeline.from_pretrained` opens.

    python -m pipelines.assemble --vae runs/autoencoder/autoencoder --transformer runs/mini/export --out MODEL
    python -m pipelines.assemble --vae runs/vae/vae --vocoder runs/vocoder/vocoder --transformer runs/mini/export --out MODEL

An autoencoder of waveforms stands alone; one of mel spectrograms needs a vocoder. The text encoder is not stored: the model takes it from the package that carries it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.complete_weights import load_complete
from qamdt.embedded import TEXT_ENCODER_PACKAGE
from qamdt.files import read_json, write_json
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.models.vocoder_istft import ISTFTVocoder
from qamdt.outputs import check_output_folder, has_fields
from qamdt.quality import QualityStats


PARTS = ("vae", "transformer", "vocoder", "scheduler", "model_index.json")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def assemble(vae: Path, vocoder: Path | None, transformer: Path, out: Path, dtype: torch.dtype) -> int:
    """Writes the model folder and returns its size in bytes.

    Args:
        vae: Folder of the autoencoder; its `scaling_factor` is replaced by the one that the training measured.
        vocoder: Folder of the vocoder; `None` for an autoencoder of waveforms.
        transformer: The `export` folder of `train_qamdt.py`, with `transformer/`, `scheduler/`, `training.json` and
            `quality_stats.json`.
        out: The folder to write; a model card that lies there stays.
        dtype: What the weights are stored in; loading brings them back to float32.
    """
    for part in filter(None, (vae, vocoder, transformer)):
        if part.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{str(part)!r} lies in `out` {str(out)!r}, which is written over; give another `out`.")
    check_output_folder(out, PARTS, is_ours=has_fields(out / "model_index.json", ["_class_name"]))
    training = read_json(transformer / "training.json")
    stats_file = transformer / "quality_stats.json"
    autoencoder = load_autoencoder(vae, has_vocoder=vocoder is not None)
    autoencoder.register_to_config(scaling_factor=training["scaling_factor"])
    pipe = QAMDTPipeline(
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        transformer=load_complete(QAMDTTransformer2DModel, transformer / "transformer"),
        scheduler=load_scheduler(transformer / "scheduler"),
        vocoder=None if vocoder is None else load_complete(ISTFTVocoder, vocoder),
        quality_stats=QualityStats.load(stats_file).to_dict() if stats_file.is_file() else None,
        text_encoder_package=TEXT_ENCODER_PACKAGE,
    )
    for part in PARTS[:-1]:
        shutil.rmtree(out / part, ignore_errors=True)
    pipe.to(dtype).save_pretrained(out)
    for part in ("vae", "transformer") if vocoder is None else ("vae", "transformer", "vocoder"):
        _make_shareable(out / part)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _make_shareable(folder: Path) -> None:
    """Removes from a part's config where it lay on this machine, and lets everyone read what diffusers wrote."""
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", dict(sorted(config.items())))
    for file in folder.iterdir():
        file.chmod(0o644)


def load_autoencoder(folder: Path, *, has_vocoder: bool) -> AutoencoderKL | AutoencoderWaveform:
    """Loads an autoencoder of either kind, and refuses one that lacks its vocoder or has no use for one."""
    hears_waveforms = read_json(folder / "config.json").get("_class_name") == AutoencoderWaveform.__name__
    if hears_waveforms == has_vocoder:
        wrong, remedy = ("with", "leave `vocoder` out") if hears_waveforms else ("without", "give `vocoder`")
        kind = "waveforms" if hears_waveforms else "mel spectrograms"
        raise ValueError(f"`vae` {str(folder)!r} is an autoencoder of {kind}, got it {wrong} a vocoder; {remedy}.")
    return load_complete(AutoencoderWaveform if hears_waveforms else AutoencoderKL, folder)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Loads the scheduler that the training chose for what its network predicts: noise and velocities, or flows."""
    name = read_json(folder / "scheduler_config.json")["_class_name"]
    is_flow = name == FlowMatchEulerDiscreteScheduler.__name__
    return (FlowMatchEulerDiscreteScheduler if is_flow else DPMSolverMultistepScheduler).from_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--vocoder", type=Path, help="for an autoencoder of mel spectrograms")
    parser.add_argument("--transformer", type=Path, required=True, help="the `export` folder of train_qamdt.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored weights (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        size = assemble(
            arguments.vae, arguments.vocoder, arguments.transformer, arguments.out, DTYPES[arguments.dtype]
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
