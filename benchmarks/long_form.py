"""What becomes of a clip past the length that the network knows, at the joints of an inpainted one, and of a loop.

    python -m benchmarks.long_form --seconds 30 180 --steps 8 --guidance 1
    python -m benchmarks.long_form --seeds 0 1 2 3 --strengths --steps 15 --plots /tmp/long_form

For clips of each length, shortest first: CPU-seconds, the peak memory of the process so far, how many windows it took, how
far the beat of the last 20 seconds is from where the tempo asked for puts it, and the spectral flux where windows begin
and end and where decoding is cut, as a rank among the flux of all moments of the clip (0 is the quietest, 1 the loudest; by
chance the median is 0.5). Then the same ranks at the ends of a span that was played anew and at the seam of a loop, and
how far audio-to-audio gets from its recording as `strength` rises.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines import QAMDTAudioToAudioPipeline, QAMDTInpaintPipeline, QAMDTPipeline
from pipelines.windows import place_windows
from qamdt.tempo_and_key import ENVELOPE_DELAY_IN_S, beat_grid, onset_envelope


PROMPT = "upbeat funk groove with drums, bass and electric piano"
BPM = 120
BAR_IN_S, LOOP_IN_S = 2.0, 8.0
SPAN = (2.69, 5.69)  # between the beats, whose own flux is great
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def flux_ranks(waveform: np.ndarray, sampling_rate: int, joints_in_s: Sequence[float]) -> np.ndarray:
    """Ranks the spectral flux at joints, the greatest within 20 ms of each, among that at all moments of a clip."""
    flux, rate_hz = onset_envelope(waveform, sampling_rate)
    nearby = np.lib.stride_tricks.sliding_window_view(np.pad(flux, 2, mode="edge"), 5).max(axis=1)
    places = np.round((np.asarray(joints_in_s) - ENVELOPE_DELAY_IN_S) * rate_hz).astype(int).clip(0, len(nearby) - 1)
    return np.array([(nearby < nearby[place]).mean() for place in places])


def beat_error_in_s(waveform: np.ndarray, sampling_rate: int, bpm: float, tail_in_s: float = 20.0) -> float:
    """How far the beats at the end of a clip are from those of a tempo that begins with it, with sign."""
    start = max(0, len(waveform) - round(tail_in_s * sampling_rate))
    measured_bpm, first_beat_in_s = beat_grid(waveform[start:], sampling_rate, bpm)
    middle_in_s = tail_in_s / 2  # where the grid fits best, should its tempo be a little off
    nearest = round((middle_in_s - first_beat_in_s) * measured_bpm / 60) * 60 / measured_bpm + first_beat_in_s
    beat_in_s = 60 / bpm
    return (start / sampling_rate + nearest + beat_in_s / 2) % beat_in_s - beat_in_s / 2


def joints_of(pipe: QAMDTPipeline, seconds: float) -> list[float]:
    """Where windows begin and end inside a clip, and where its decoding is cut, in seconds."""
    num_frames, size = pipe.num_latent_frames(seconds), pipe.transformer.config.sample_size[0]
    if num_frames <= size:
        return []
    windows = place_windows(num_frames, size)
    frames = {*windows[1:, 0].tolist(), *(windows[:-1, -1] + 1).tolist(), *range(size, num_frames, size)}
    return sorted(frame * pipe._latent_frame_in_s for frame in frames)


def describe_ranks(ranks: np.ndarray) -> str:
    """Median and share above the 95th percentile."""
    return f"median rank {np.median(ranks):.2f}, above the 95th percentile {np.mean(ranks > 0.95):.0%} of {len(ranks)}"


def measure_lengths(pipe: QAMDTPipeline, lengths: Sequence[float], **settings) -> dict[str, np.ndarray]:
    """Prints a line for each length, and returns the longest clip."""
    for seconds in sorted(lengths):
        began = time.process_time()
        audio = pipe(
            PROMPT, bpm=BPM, audio_length_in_s=seconds, generator=torch.Generator().manual_seed(0), **settings
        ).audios[0]
        cpu_s = time.process_time() - began
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        joints = joints_of(pipe, seconds)
        error_ms = 1000 * beat_error_in_s(audio, pipe.sampling_rate, BPM)
        print(
            f"{seconds:g} s: {cpu_s:.1f} CPU-s ({cpu_s / seconds:.3f} a second), peak {peak_mb:.0f} MB, beat {error_ms:+.0f} ms"
        )
        if joints:
            print(f"  joints: {describe_ranks(flux_ranks(audio, pipe.sampling_rate, joints))}", flush=True)
    return {f"{seconds:g} s": audio}


def measure_edits(pipe: QAMDTPipeline, seeds: Sequence[int], **settings) -> dict[str, np.ndarray]:
    """Prints what is heard at the joints of inpainted clips and at the seams of loops, and returns the last of each."""
    inpaint = QAMDTInpaintPipeline.from_pipe(pipe)
    rate, inpaint_ranks, loop_ranks, jumps = pipe.sampling_rate, [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        recording = pipe(PROMPT, bpm=BPM, generator=generator, **settings).audios[0]
        for keep_original in (True, False):
            filled = inpaint(
                PROMPT,
                audio=recording,
                sampling_rate=rate,
                spans=[SPAN],
                bpm=BPM,
                keep_original=keep_original,
                generator=torch.Generator().manual_seed(seed + 100),
                **settings,
            ).audios[0]
            inpaint_ranks.append(flux_ranks(filled, rate, SPAN))
        loop = pipe(PROMPT, bpm=BPM, audio_length_in_s=LOOP_IN_S, loop=True, generator=generator, **settings).audios[0]
        twice = np.concatenate([loop, loop])
        # A bar begins at the seam; so it is compared with where the others begin.
        bars_in_s = np.arange(BAR_IN_S, 2 * LOOP_IN_S, BAR_IN_S)
        at_bars = flux_ranks(twice, rate, bars_in_s)
        loop_ranks.append((at_bars[bars_in_s == LOOP_IN_S].item(), at_bars[bars_in_s != LOOP_IN_S].max()))
        jumps.append(abs(loop[0] - loop[-1]) / np.quantile(np.abs(np.diff(loop)), 0.95))
    print(f"inpainting, keeping the original: {describe_ranks(np.concatenate(inpaint_ranks[::2]))}")
    print(f"inpainting, through the autoencoder: {describe_ranks(np.concatenate(inpaint_ranks[1::2]))}")
    seams = ", ".join(f"{seam:.2f} ({bar:.2f})" for seam, bar in loop_ranks)
    print(
        f"loops: rank at the seam (greatest at another bar) {seams}; step there over the 95th inside {max(jumps):.2f}"
    )
    return {"inpainted": filled, "loop, twice": twice}


def measure_strengths(pipe: QAMDTPipeline, **settings) -> None:
    """Prints how far audio-to-audio gets from what the autoencoder makes of a recording."""
    change = QAMDTAudioToAudioPipeline.from_pipe(pipe)
    recording = pipe(PROMPT, bpm=BPM, generator=torch.Generator().manual_seed(0), **settings).audios[0]
    latents = [
        change(
            "string quartet",
            audio=recording,
            sampling_rate=pipe.sampling_rate,
            strength=strength,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
            **settings,
        ).audios
        for strength in STRENGTHS
    ]
    distances = [float((later - latents[0]).norm() / latents[0].norm()) for later in latents]
    print("strength:", ", ".join(f"{s:g} → {d:.2f}" for s, d in zip(STRENGTHS, distances, strict=True)))


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (the default model)")
    parser.add_argument("--seconds", type=float, nargs="*", default=(), help="lengths to measure")
    parser.add_argument("--seeds", type=int, nargs="*", default=(), help="clips to inpaint and loops to make")
    parser.add_argument("--strengths", action="store_true", help="also measure audio-to-audio")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--plots", type=Path, help="folder for spectrograms and sound")
    arguments = parser.parse_args(argv)
    pipe = QAMDTPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}
    clips = {}
    if arguments.seconds:
        clips |= measure_lengths(pipe, arguments.seconds, **settings)
    if arguments.seeds:
        clips |= measure_edits(pipe, arguments.seeds, **settings)
    if arguments.strengths:
        measure_strengths(pipe, **settings)
    if arguments.plots:
        draw(arguments.plots, clips, pipe.sampling_rate)
    return 0


def draw(folder: Path, clips: dict[str, np.ndarray], sampling_rate: int) -> None:
    """Writes a spectrogram and a sound file of each clip."""
    from pipelines.spectrogram import draw_spectrograms
    from qamdt.audio import write_audio

    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in clips.items():
        stem = name.replace(",", "").replace(" ", "-")
        write_audio(folder / f"{stem}.wav", clip, sampling_rate)
        draw_spectrograms(folder / f"{stem}.png", torch.from_numpy(clip)[None], sampling_rate)


if __name__ == "__main__":
    sys.exit(main())
