"""What a model cannot do is told by its card, its length and its tokenizer, in one line each."""

import pytest

from pipelines.model_limits import Limit, ModelLimits, read_limits
from qamdt.embedded import EMBEDDED_MODEL_DIR, text_encoder_dir


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(text_encoder_dir())


@pytest.fixture(scope="module")
def warn(tokenizer):
    limits = read_limits(EMBEDDED_MODEL_DIR)

    def warn(prompt, seconds=10.24):
        return limits.warn(prompt, seconds, tokenizer=tokenizer)

    return warn


@pytest.mark.parametrize(
    ("prompt", "seconds", "message"),
    [
        ("a woman Singing over piano", 10, "The prompt says 'singing': It has no voices"),
        ("rock in the style of Queen", 10, "It knows no artists"),
        ("verse, chorus, verse", 10, "It follows no form"),
        ("solo piano in stereo", 10, "It makes mono at 16 kHz"),
        ("a 3 minute song", 10.24, "The prompt says 3 minute, which sets no length: 10.24 s are made"),
        ("ピアノ🎹 бал\N{CYRILLIC SMALL LETTER OMEGA}", 10, "cannot read"),
        ("спокойное пианино", 10, "The model reads English: 'спокойное', 'пианино'"),
    ],
)
def test_what_is_asked_for_in_vain_gets_one_line(warn, prompt, seconds, message):
    warnings = warn(prompt, seconds)
    assert len(warnings) == 1
    assert message in warnings[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "calm solo piano ballad in C major, slow tempo",
        "slow blues in the style of a rag",
        "wrapping synths, a singular cello",
        "für Elise on piano",
        "at 90 bpm, 4/4",
        "ten seconds of 10 second long drone",
    ],
)
def test_what_can_be_done_gets_none(warn, prompt):
    assert warn(prompt, 10.24) == []


def test_no_word_of_the_training_captions_gets_a_warning(warn):
    from data_prep.composer.instruments import INSTRUMENTS
    from data_prep.composer.moods import MOODS
    from data_prep.composer.styles import STYLES

    words = {word for things in (INSTRUMENTS, MOODS, STYLES) for thing in things.values() for word in thing.names}
    assert {word: found for word in words if (found := warn(word))} == {}


def test_a_card_that_says_it_wrongly_is_named(tmp_path):
    assert read_limits(tmp_path) == ModelLimits()
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert read_limits(tmp_path) == ModelLimits()
    (tmp_path / "README.md").write_text("---\ncannot: [{words: [x]}]\n---\n")
    with pytest.raises(ValueError, match="README.md' must be a list of objects with `phrases`"):
        read_limits(tmp_path)
    (tmp_path / "README.md").write_text("---\n{\n---\n")
    with pytest.raises(ValueError, match="must begin with YAML"):
        read_limits(tmp_path)


def test_a_name_begins_with_a_capital_letter():
    limit = Limit(phrases=("like",), because="No.", before_name=True)
    assert limit.find("something LIKE Abba") == "like"
    assert limit.find("something like a dream") is None
    assert limit.find("something dreamlike Abba") is None
