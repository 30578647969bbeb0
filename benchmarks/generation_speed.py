"""Times the embedded model beside MusicLDM- and AudioLDM2-shaped pipelines of diffusers, in one run.

    python -m benchmarks.generation_speed --rounds 3 --threads 2 --output speed.json

Each candidate lives in a process of its own, so that its peak memory is its own, and the rounds alternate between the
candidates, so that a busy machine slows all of them alike. The embedded model is measured whole, from prompt to
waveform. The peers have their published shapes and random weights, which cost the same as trained ones: one denoiser
step with guidance (batch of two) and one decoding (autoencoder and vocoder) are measured, and the time of a clip is
extrapolated as `steps * step + decoding`. Their text encoders and the time to load are left out, in their favour.
Other work on the machine spoils the numbers: the load average before the run is saved with them.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


SAMPLING_RATE = 16_000
MEL_FRAMES_PER_SECOND = 100
PEER_STEPS = (200, 20)  # what the peers' pipelines do by default, and what a fast solver needs
UNET_CHANNELS = (128, 256, 384, 640)
UNET_ARGUMENTS = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": UNET_CHANNELS,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "attention_head_dim": tuple(channels // 32 for channels in UNET_CHANNELS),
}

Parts = dict[str, Callable[[], object]]


def build_embedded(seconds: float, dtype: torch.dtype) -> Parts:
    """Builds the model of this project; it chooses its own precision."""
    from pipelines.pipeline_qamdt import QAMDTPipeline

    pipeline = QAMDTPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    return {"clip": lambda: pipeline("calm solo piano ballad", quality="high", audio_length_in_s=seconds)}


def build_musicldm(seconds: float, dtype: torch.dtype) -> Parts:
    """Builds MusicLDM's denoiser, conditioned on one CLAP vector, and its decoders."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        **UNET_ARGUMENTS,
        cross_attention_dim=UNET_CHANNELS,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )
    unet = unet.to(dtype).eval()
    latents = peer_latents(seconds, dtype)
    clap_embedding = torch.randn(2, 512, dtype=dtype)
    return {
        "step": lambda: unet(latents, 500, encoder_hidden_states=None, class_labels=clap_embedding),
        "decoding": build_audioldm_decoders(seconds, dtype),
    }


def build_audioldm2(seconds: float, dtype: torch.dtype) -> Parts:
    """Builds AudioLDM2's denoiser, conditioned on GPT-2 and Flan-T5 states, and its decoders."""
    from diffusers import AudioLDM2UNet2DConditionModel

    unet = AudioLDM2UNet2DConditionModel(**UNET_ARGUMENTS, cross_attention_dim=((None, 768, 1024),) * 4)
    unet = unet.to(dtype).eval()
    latents = peer_latents(seconds, dtype)
    generated_states = torch.randn(2, 8, 768, dtype=dtype)
    text_states = torch.randn(2, 16, 1024, dtype=dtype)
    return {
        "step": lambda: unet(
            latents, 500, encoder_hidden_states=generated_states, encoder_hidden_states_1=text_states
        ),
        "decoding": build_audioldm_decoders(seconds, dtype),
    }


def peer_latents(seconds: float, dtype: torch.dtype) -> torch.Tensor:
    """Draws the peers' latents, with and without the prompt: `(2, channels, latent_frames, latent_bins)`."""
    return torch.randn(2, 8, round(seconds * MEL_FRAMES_PER_SECOND / 4), 16, dtype=dtype)


def build_audioldm_decoders(seconds: float, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Builds the autoencoder and the HiFi-GAN that both peers decode with."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        block_out_channels=(128, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
    )
    vocoder_config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=SAMPLING_RATE,
        upsample_initial_channel=1024,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    vae = vae.to(dtype).eval()
    vocoder = SpeechT5HifiGan(vocoder_config).to(dtype).eval()
    latents = peer_latents(seconds, dtype)[:1]
    return lambda: vocoder(vae.decode(latents).sample.squeeze(1))


CANDIDATES = {"qamdt-mini": build_embedded, "MusicLDM": build_musicldm, "AudioLDM2": build_audioldm2}


def serve(name: str, threads: int, seconds: float, dtype: torch.dtype, connection: Connection) -> None:
    """Builds one candidate, then measures each of its parts once for every request."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns when a model is cast to the precision it already has
    torch.set_num_threads(threads)
    with torch.inference_mode():
        parts = CANDIDATES[name](seconds, dtype)
        while connection.recv():
            measured = {part: time_once(run) for part, run in parts.items()}
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            connection.send({"parts": measured, "peak_rss_gb": peak_gb})


def time_once(run: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure(rounds: int, threads: int, seconds: float, dtype: torch.dtype) -> dict[str, list[dict]]:
    """Runs one unmeasured round and then `rounds` rounds, alternating between the candidates."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name in CANDIDATES:
        connections[name], other_end = context.Pipe()
        process = context.Process(target=serve, args=(name, threads, seconds, dtype, other_end), daemon=True)
        process.start()
        other_end.close()
        processes.append(process)

    measured = {name: [] for name in CANDIDATES}
    for round_index in range(rounds + 1):
        for name, connection in connections.items():
            connection.send(True)
            answer = connection.recv()
            if round_index > 0:
                measured[name].append(answer)
    for connection in connections.values():
        connection.send(False)
    for process in processes:
        process.join()
    return measured


def summarize(measured: dict[str, list[dict]], seconds: float) -> list[dict]:
    """Turns the rounds into table rows: medians, and for the peers the extrapolated time of a clip."""
    rows = []
    for name, rounds in measured.items():
        wall, cpu = median_of_parts(rounds, "wall_s"), median_of_parts(rounds, "cpu_s")
        for num_steps in ("default",) if "clip" in wall else PEER_STEPS:
            rows.append(
                {
                    "candidate": name,
                    "steps": num_steps,
                    "extrapolated": "clip" not in wall,
                    "wall_s": clip_time(wall, num_steps),
                    "cpu_s": clip_time(cpu, num_steps),
                    "times_real_time": seconds / clip_time(wall, num_steps),
                    "peak_rss_gb": max(measurement["peak_rss_gb"] for measurement in rounds),
                }
            )
    return rows


def median_of_parts(rounds: list[dict], unit: str) -> dict[str, float]:
    parts = rounds[0]["parts"]
    return {part: statistics.median(measurement["parts"][part][unit] for measurement in rounds) for part in parts}


def clip_time(parts: dict[str, float], num_steps: int | str) -> float:
    return parts["clip"] if "clip" in parts else num_steps * parts["step"] + parts["decoding"]


def format_table(rows: list[dict]) -> str:
    lines = [
        "| candidate | steps | seconds | CPU seconds | times real time | peak RSS, GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = " (extrapolated)" if row["extrapolated"] else ""
        lines.append(
            f"| {row['candidate']} | {row['steps']} | {row['wall_s']:.2f}{mark} | {row['cpu_s']:.2f} "
            f"| {row['times_real_time']:.3g} | {row['peak_rss_gb']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds; the median is reported")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each candidate")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip")
    parser.add_argument("--peer-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", help="JSON file for the rows and every single measurement")
    arguments = parser.parse_args(argv)

    settings = vars(arguments) | {"torch": torch.__version__, "load_average_before": os.getloadavg()}
    dtype = getattr(torch, arguments.peer_dtype)
    measured = measure(arguments.rounds, arguments.threads, arguments.seconds, dtype)
    rows = summarize(measured, arguments.seconds)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({"settings": settings, "rows": rows, "rounds": measured}, file, indent=2)
    print(format_table(rows))


if __name__ == "__main__":
    main()
