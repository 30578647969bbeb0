"""Plays 24 prompts at high and at low quality, and writes a page with their sound and their spectrograms.

    python -m benchmarks.gallery docs/gallery

writes `README.md` with a row for each prompt, Opus files and pictures. The two qualities of a prompt begin with the same
noise and the same plan.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.spectrogram import check_matplotlib, draw_spectrograms
from qamdt.files import write_atomically, write_text
from qamdt.music import Music


PROMPTS = (
    "calm solo piano ballad in C major, slow tempo",
    "upbeat jazz trio at 140 bpm",
    "church organ in D minor at 70 bpm",
    "fast heavy metal with distorted guitar and drums in E minor",
    "funk groove with slap bass at 104 bpm",
    "solo nylon guitar, bossa nova in A minor",
    "string quartet in G major, andante",
    "harpsichord, baroque, allegro in B flat major",
    "techno track at 132 bpm",
    "deep house in F minor at 122 bpm",
    "lo-fi hip hop beat with electric piano, 78 bpm",
    "a waltz for strings in E flat major",
    "reggae groove in A minor at seventy-six bpm",
    "solo harp, dreamy, in F major",
    "marching band in B flat major at 112 bpm",
    "blues shuffle in E with electric guitar",
    "choir singing a hymn in G minor, slow",
    "ambient soundscape with synth pads",
    "synthwave track at 100 beats per minute in C minor",
    "solo cello, melancholic, in D minor",
    "folk song with acoustic guitar and flute at 110 bpm",
    "big band swing at one hundred and sixty bpm",
    "cinematic orchestra, dark, in C minor at 90 bpm",
    "salsa with piano and brass section",
)
QUALITIES = ("high", "low")
SEED = 0


def make_gallery(model: str | None, folder: Path) -> None:
    """Generates everything and writes the page."""
    check_matplotlib("the gallery")
    folder.mkdir(parents=True, exist_ok=True)
    pipe = QAMDTPipeline.from_pretrained(model) if model else QAMDTPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for number, prompt in enumerate(tqdm(PROMPTS, desc="prompts"), start=1):
        outputs = [
            pipe(prompt, quality=quality, generator=torch.Generator().manual_seed(SEED)) for quality in QUALITIES
        ]
        name = f"{number:02d}-{slug(prompt)}"
        for quality, output in zip(QUALITIES, outputs, strict=True):
            write_opus(folder / f"{name}-{quality}.opus", output.audios[0], pipe.sampling_rate)
        waveforms = torch.from_numpy(np.concatenate([output.audios for output in outputs]))
        draw_spectrograms(folder / f"{name}.png", waveforms, pipe.sampling_rate)
        shrink_picture(folder / f"{name}.png")
        rows.append(format_row(prompt, name, outputs[0].music[0] if outputs[0].music else None))
    write_text(folder / "README.md", format_page(rows))


def write_opus(path: Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Writes a small file, no louder than full scale."""
    soundfile.write(path, waveform / max(1.0, np.abs(waveform).max()), sampling_rate, format="OGG", subtype="OPUS")


def shrink_picture(path: Path) -> None:
    """Makes a picture a tenth as large: 640 pixels wide, with 48 colours."""
    from PIL import Image  # matplotlib brings it

    with Image.open(path) as image:
        small = image.convert("RGB").resize((640, round(640 * image.height / image.width)))
    write_atomically(path, lambda file: small.quantize(48).save(file, format="PNG", optimize=True))


def slug(prompt: str) -> str:
    """The first words of a prompt as part of a file name."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:4])


def format_row(prompt: str, name: str, music: Music | None) -> str:
    played = "" if music is None else describe_music(music)
    sounds = ", ".join(f"[{quality}]({name}-{quality}.opus)" for quality in QUALITIES)
    return f"| {prompt} | {played} | {sounds} | ![]({name}.png) |"


def describe_music(music: Music) -> str:
    """What is played, in a line: "72 bpm, 4/4, C major, C F G C"."""
    chords = " ".join(symbol for _, symbol in (music.chords or ())[:4])
    tempo = None if music.tempo_bpm is None else f"{music.tempo_bpm:g} bpm"
    return ", ".join(part for part in (tempo, music.time_signature, music.key, chords) if part)


def format_page(rows: list[str]) -> str:
    lines = [
        "# Gallery",
        "",
        f"The embedded model, seed {SEED} for every clip, none picked. `python -m benchmarks.gallery docs/gallery` made "
        "this page. In the pictures, high quality stands above low.",
        "",
        "| prompt | played | listen | spectrograms |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the page")
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    arguments = parser.parse_args(argv)
    make_gallery(arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
