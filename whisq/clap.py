"""CLAP behind one small interface: how well does a sentence describe a sound?

Three kinds of models stand behind it: the small one that ships with this project, every `ClapModel` of transformers
(a folder or a Hub id), and the original LAION checkpoints. Long clips are cut into windows that neither overlap nor
move, so a clip has the same embedding always; the random crops of CLAP's own front ends are never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import soxr
import torch

from qamdt.complete_weights import load_complete
from qamdt.files import read_json
from whisq.modeling_clap import MiniClap


if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase


EMBEDDED = "embedded"
LAION_SUFFIXES = (".pt", ".safetensors")
MAX_TEXT_TOKENS = 77  # what the published models were trained with
SHORTEST_WINDOW = 0.1  # of a whole one: a shorter rest at the end of a clip is not heard by itself


class Clap(Protocol):
    """What caption refinement needs of a CLAP model.

    Attributes:
        name: Which model and which weights; goes into results and fingerprints.
        sampling_rate: Rate in Hz that it listens at; other rates are resampled.
    """

    name: str
    sampling_rate: int

    def embed_audio(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Maps mono waveforms, each `(samples,)`, to embeddings `(batch, E)` of unit length."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Maps sentences to embeddings `(batch, E)` of unit length."""


def load_clap(name_or_path: str = EMBEDDED, *, revision: str | None = None, device: str = "cpu") -> Clap:
    """Loads a CLAP model.

    Args:
        name_or_path: "embedded"; a folder or Hub id of a `ClapModel`; a folder that `whisq.train_clap` wrote; or a LAION
            checkpoint (.pt or .safetensors).
        revision: Version of a model on the Hub.
        device: Where it computes.
    """
    if name_or_path == EMBEDDED:
        from whisq.embedded import load_clap as load_mini_clap

        return EmbeddedClap(load_mini_clap().to(device))
    if _is_mini_clap(Path(name_or_path)):
        from whisq.modeling_clap import MiniClap

        return EmbeddedClap(load_complete(MiniClap, name_or_path).to(device))
    if name_or_path.endswith(LAION_SUFFIXES):
        return LaionClap(name_or_path, device=device)
    return TransformersClap.from_pretrained(name_or_path, revision=revision, device=device)


def _is_mini_clap(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "MiniClap"


def split_windows(waveform: np.ndarray, window_samples: int) -> list[np.ndarray]:
    """Cuts a waveform `(samples,)` into windows one after the other; the last one holds the rest.

    A rest of less than a tenth of a window is left out, unless it is all there is.
    """
    starts = range(0, len(waveform), window_samples)
    windows = [waveform[start : start + window_samples] for start in starts]
    if len(windows) > 1 and len(windows[-1]) < SHORTEST_WINDOW * window_samples:
        windows.pop()
    return windows


def embed_windows(
    waveforms: Sequence[np.ndarray],
    window_samples: int,
    embed: Callable[[list[np.ndarray]], np.ndarray],
    batch_size: int = 16,
) -> np.ndarray:
    """Embeds waveforms window by window; a clip's embedding is the mean of its windows' by their lengths, made unit.

    Args:
        waveforms: The clips, each `(samples,)`.
        window_samples: Length of a window.
        embed: Maps windows, none longer than `window_samples`, to embeddings `(windows, E)` of unit length.
        batch_size: How many windows to embed at once.
    """
    for number, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or len(waveform) == 0 or not np.isfinite(waveform).all():
            raise ValueError(
                f"`waveforms[{number}]` must be finite mono samples of shape (samples,), got {waveform.shape}."
            )
    windows_of_clips = [split_windows(waveform, window_samples) for waveform in waveforms]
    windows = [window for clip in windows_of_clips for window in clip]
    batches = [embed(windows[start : start + batch_size]) for start in range(0, len(windows), batch_size)]
    embeddings = iter(np.concatenate(batches))
    clips = [sum(len(window) * next(embeddings) for window in clip) for clip in windows_of_clips]
    return unit_length(np.stack(clips))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scales each row of `(batch, E)` to unit length, as float32."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def _resample(waveforms: Sequence[np.ndarray], source_rate: int, target_rate: int) -> list[np.ndarray]:
    waveforms = [np.asarray(waveform, dtype=np.float32) for waveform in waveforms]
    if source_rate == target_rate:
        return waveforms
    return [soxr.resample(waveform, source_rate, target_rate) for waveform in waveforms]


class EmbeddedClap:
    """The small CLAP that ships with this project.

    Args:
        model: The model.
    """

    sampling_rate = 16_000
    window_in_s = 10.24

    def __init__(self, model: MiniClap):
        self.model = model.eval()
        self.name = f"{model.config.name}@{fingerprint_weights(model)}"

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Maps mono waveforms, each `(samples,)`, to embeddings `(batch, E)` of unit length."""
        waveforms = _resample(waveforms, sampling_rate, self.sampling_rate)
        return embed_windows(waveforms, round(self.window_in_s * self.sampling_rate), self._embed)

    def _embed(self, windows: list[np.ndarray]) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(window)) for window in windows]
        padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)  # (B, samples)
        lengths = torch.tensor([len(window) for window in windows])
        device = next(self.model.parameters()).device
        return self.model.embed_audio(padded.to(device), lengths.to(device)).float().cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Maps sentences to embeddings `(batch, E)` of unit length."""
        return unit_length(self.model.embed_text(list(texts)).float().cpu().numpy())


class TransformersClap:
    """A `ClapModel` of transformers, with or without feature fusion.

    Args:
        model: The model.
        feature_extractor: Its audio front end.
        tokenizer: Its tokenizer.
        name: Name for results and fingerprints.
    """

    def __init__(
        self,
        model: ClapModel,
        feature_extractor: ClapFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
    ):
        self.model = model.eval()
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.name = name
        self.sampling_rate = feature_extractor.sampling_rate

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, revision: str | None = None, device: str = "cpu"
    ) -> TransformersClap:
        """Loads the model with its front ends from a folder or from the Hub."""
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        model = load_complete(ClapModel, name_or_path, revision=revision).to(device)
        return cls(
            model,
            ClapFeatureExtractor.from_pretrained(name_or_path, revision=revision),
            AutoTokenizer.from_pretrained(name_or_path, revision=revision),
            name=f"{name_or_path}@{fingerprint_weights(model)}",
        )

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Maps mono waveforms, each `(samples,)`, to embeddings `(batch, E)` of unit length."""
        waveforms = _resample(waveforms, sampling_rate, self.sampling_rate)
        return embed_windows(waveforms, self.feature_extractor.nb_max_samples, self._embed)

    def _embed(self, windows: list[np.ndarray]) -> np.ndarray:
        inputs = self.feature_extractor(windows, sampling_rate=self.sampling_rate, return_tensors="pt")
        # For models with feature fusion the extractor marks one clip at random as longer than a window. None is.
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool)
        features = inputs["input_features"].float().to(self.model.device)
        output = self.model.get_audio_features(input_features=features, is_longer=is_longer.to(self.model.device))
        return unit_length(output.pooler_output.float().cpu().numpy())

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Maps sentences to embeddings `(batch, E)` of unit length."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
        ).to(self.model.device)
        output = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return unit_length(output.pooler_output.float().cpu().numpy())


class LaionClap:
    """An original checkpoint in LAION's own code, which needs the package `laion-clap`.

    Args:
        checkpoint: The file, .pt or .safetensors; which network it belongs to is seen from its weights.
        device: Where it computes.
    """

    sampling_rate = 48_000
    window_samples = 480_000

    def __init__(self, checkpoint: str | Path, *, device: str = "cpu"):
        from whisq.convert_clap import describe_laion_weights, read_laion_weights

        try:
            from laion_clap import CLAP_Module
        except ImportError as error:
            raise ImportError(
                f"{str(checkpoint)!r} is an original LAION checkpoint. Install the package `laion-clap` to run it in "
                "its own code, or convert it once with `python -m whisq.convert_clap` and give the folder."
            ) from error
        weights = read_laion_weights(checkpoint)
        network = describe_laion_weights(weights)
        self.module = CLAP_Module(enable_fusion=network.has_fusion, amodel=network.audio_model, device=device)
        self.module.model.load_state_dict(weights, strict=True)
        self.module.eval()
        self.name = f"{Path(checkpoint).name}@{fingerprint_weights(self.module.model)}"

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Maps mono waveforms, each `(samples,)`, to embeddings `(batch, E)` of unit length."""
        waveforms = _resample(waveforms, sampling_rate, self.sampling_rate)
        return embed_windows(waveforms, self.window_samples, self._embed)

    def _embed(self, windows: list[np.ndarray]) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(window)) for window in windows]
        return self.module.get_audio_embedding_from_data(tensors, use_tensor=True).float().cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Maps sentences to embeddings `(batch, E)` of unit length."""
        return unit_length(self.module.get_text_embedding(list(texts), use_tensor=True).float().cpu().numpy())


def fingerprint_weights(model: torch.nn.Module) -> str:
    """Returns eight hexadecimal digits that change with the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]
