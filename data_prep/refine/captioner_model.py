"""A captioner that is a model of transformers: anything that hears audio and answers in text, named by its id.

Models with a chat template (Qwen2-Audio, Audio Flamingo, Music Flamingo, …) are asked for a description; models
without one (Whisper trained for captioning) are only given the sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch

from data_prep.refine.outcomes import Candidate
from qamdt.complete_weights import load_complete
from qamdt.manifest import Record
from whisq.clap import fingerprint_weights, split_windows


if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

CAPTION_PROMPT = (
    "Describe this music in one English sentence: its style, mood, instruments and tempo. "
    "Say only what can be heard. Ignore any words that are spoken or sung."
)


class TransformersCaptioner:
    """Describes a clip window by window; each window gives a candidate.

    Args:
        model: A model that generates text from audio.
        processor: Its processor.
        name: Name for results and fingerprints.
        window_in_s: Length of a window; windows follow each other without overlap.
        max_new_tokens: Longest answer, in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        name: str,
        window_in_s: float = 10.0,
        max_new_tokens: int = 96,
    ):
        if window_in_s <= 0:
            raise ValueError(f"`window_in_s` must be more than 0, got {window_in_s}.")
        if not hasattr(processor, "feature_extractor"):
            raise ValueError(
                f"`processor` must take audio, got a {type(processor).__name__}: {name!r} hears nothing. Name a model "
                "that answers audio with text."
            )
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.window_in_s = window_in_s
        self.max_new_tokens = max_new_tokens
        self.sampling_rate = processor.feature_extractor.sampling_rate

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, revision: str | None = None, device: str = "cpu", window_in_s: float = 10.0
    ) -> TransformersCaptioner:
        """Loads model and processor from a folder or from the Hub."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(name_or_path, revision=revision)
        families = (
            (transformers.AutoModelForMultimodalLM, transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING),
            (transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
            (transformers.AutoModelForSpeechSeq2Seq, transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING),
        )
        model_class = next((family for family, mapping in families if type(config) in mapping), None)
        if model_class is None:
            raise ValueError(
                f"`name_or_path` must be a model of transformers that answers audio with text, got {name_or_path!r}, "
                f"which is a {config.model_type}."
            )
        processor = transformers.AutoProcessor.from_pretrained(name_or_path, revision=revision)
        model = load_complete(model_class, name_or_path, revision=revision).to(device)
        name = f"{name_or_path}@{fingerprint_weights(model)}"
        return cls(model, processor, name=name, window_in_s=window_in_s)

    def __call__(self, record: Record, waveform: np.ndarray, sampling_rate: int) -> list[Candidate]:
        """Returns a candidate for each window of the clip, equal ones once."""
        if sampling_rate != self.sampling_rate:
            waveform = soxr.resample(waveform, sampling_rate, self.sampling_rate)
        windows = split_windows(waveform, round(self.window_in_s * self.sampling_rate))
        texts = [self.describe(window) for window in windows]
        return [Candidate(text, self.name) for text in dict.fromkeys(texts) if text]

    @torch.inference_mode()
    def describe(self, window: np.ndarray) -> str:
        """Returns what the model says of one window `(samples,)` at its own sampling rate."""
        inputs = self._prepare(window).to(self.model.device, self.model.dtype)
        generated = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        if not self.model.config.is_encoder_decoder:
            generated = generated[:, inputs["input_ids"].shape[1] :]  # without the question
        return self.processor.batch_decode(generated, skip_special_tokens=True)[0].strip()

    def _prepare(self, window: np.ndarray):
        if getattr(self.processor, "chat_template", None) is None:
            return self.processor(audio=window, sampling_rate=self.sampling_rate, return_tensors="pt")
        content = [{"type": "audio", "audio": window}, {"type": "text", "text": CAPTION_PROMPT}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self.processor(text=[text], audio=[window], sampling_rate=self.sampling_rate, return_tensors="pt")
