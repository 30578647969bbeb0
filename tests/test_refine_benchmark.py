"""The benchmark of caption refinement, tried with a CLAP that reads instead of hearing."""

import zlib

import numpy as np
import pytest

from benchmarks.caption_refinement import is_wrong_for, measure_removal, plant
from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from qamdt.manifest import read_manifest


RECORDS = read_manifest(SAMPLE_CORPUS_DIR / "manifest.jsonl")


class WordClap:
    """Texts are alike as far as they share words."""

    def embed_text(self, texts):
        vectors = np.zeros((len(texts), 1024))
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace(",", " ").replace(".", " ").split():
                vector[zlib.crc32(word.encode()) % 1024] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_wrong_captions_are_planted_where_they_are_said_to_be():
    captions, is_wrong = plant(RECORDS, 0.2, seed=1)
    assert is_wrong.sum() == round(0.2 * len(RECORDS))
    for record, caption, wrong in zip(RECORDS, captions, is_wrong, strict=True):
        if wrong:
            owners = [owner for owner in RECORDS if caption in owner.captions]
            assert any(is_wrong_for(owner, record) for owner in owners)
        else:
            assert caption in record.captions
    assert plant(RECORDS, 0.2, seed=1)[0] == captions
    assert plant(RECORDS, 0.2, seed=2)[0] != captions


def test_removal_is_measured_between_a_perfect_ear_and_a_deaf_one():
    clap, settings = WordClap(), {"wrong_share": 0.2, "wrong_kept_share": 0.1, "num_plantings": 5}
    heard = clap.embed_text([" ".join(record.captions) for record in RECORDS])
    removal = measure_removal(RECORDS, heard, clap, **settings)
    assert removal["wrong"] > 0.9
    assert removal["right"] < 0.2
    assert removal["auc"] > 0.95
    deaf = np.random.default_rng(0).permutation(heard)
    removal = measure_removal(RECORDS, deaf, clap, **settings)
    assert removal["auc"] == pytest.approx(0.5, abs=0.25)
    assert (removal["wrong"], removal["right"]) == (0, 0)  # nothing is dropped for what it hears
