"""What tests of the refiner share: clips whose sound and captions are known, and a CLAP that hears what they say."""

import zlib

import numpy as np

from qamdt.audio import write_audio
from qamdt.manifest import Record, write_manifest


GIVEN = ("--captioners", "tags", "--min-similarity", "0.2", "--max-loss", "1", "--duplicate", "0.9")


class WordClap:
    """Hears a sentence in each sound, by its loudness; texts are alike as far as they share words."""

    name, sampling_rate = "words", 16_000

    def embed_audio(self, waveforms, sampling_rate):
        return self.embed_text([sentence(round(abs(waveform).max() * 20)) for waveform in waveforms])

    def embed_text(self, texts):
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace(",", " ").replace(".", " ").split():
                vector[zlib.crc32(word.encode()) % 512] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def sentence(number):
    """What clip `number` sounds like."""
    styles = ["jazz", "rock", "folk", "techno", "baroque", "blues"]
    return f"{['slow', 'fast'][number % 2]} {styles[number % 6]} music"


def write_clips(folder):
    """Writes six clips and returns their manifest; each has a true caption, a tag, and every second one a wrong caption."""
    records = []
    for number in range(6):
        write_audio(folder / f"{number}.wav", np.full(800, number / 20, np.float32), 16_000)
        captions = (sentence(number), "a lecture about gardening at night")[: 1 + number % 2]
        tags = {"style": sentence(number).split()[1], "mood": "happy", "instruments": ["piano"]}
        records.append(
            Record(id=f"clip-{number}", path=f"{number}.wav", duration_in_s=0.05, captions=captions, tags=tags)
        )
    write_manifest(folder / "manifest.jsonl", records)
    return folder / "manifest.jsonl"
