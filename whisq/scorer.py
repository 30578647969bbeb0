"""`WhisQScorer`: sound files or waveforms, and prompts, in; scores out.

Clips up to 30 s are heard whole, longer ones in windows of 30 s every 15 s, whose scores are averaged by their length.
The curve of a clip costs no second pass of the encoder: windows of about two seconds over the tokens that are already
there go through the head of overall quality, and the curve is shifted so that its mean is the score of the clip.

Shapes: B windows of clips, T audio tokens, W frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qamdt.audio import SAMPLING_RATE
from qamdt.complete_weights import load_complete
from qamdt.precision import check_device
from qamdt.quality import MAX_SCORE, MIN_SCORE
from whisq.embedded import SCORER_DIR
from whisq.encoders import AudioEncoder, TextEncoder, fingerprint, load_audio_encoder, load_text_encoder, locate
from whisq.modeling_whisq import WhisQModel
from whisq.windows import (
    BATCH_IN_S,
    MIN_AUDIBLE_SHARE,
    Window,
    audible_share,
    clip_duration,
    cut_batches,
    cut_windows,
    find_flags,
    make_window,
    read_windows,
)


Audio = str | os.PathLike | torch.Tensor | np.ndarray

FRAME_HOP_IN_S = 0.5  # rounded to whole tokens
FRAME_WINDOW_IN_S = 2.0
LISTENING_VERSION = 3  # raise it when the encoder is given other samples of the same file, or a clip another flag


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """What the scorer says about a clip; all scores are `None` where `error` says why there are none.

    Args:
        overall_quality: How good the music sounds, 1 to 5.
        text_alignment: How well it follows its prompt, 1 to 5; `None` without a prompt.
        frame_overall_quality: Quality along the clip: value i speaks for the `frame_hop_in_s` seconds that begin at
            `i * frame_hop_in_s`, and was heard in a window of about two seconds around them.
        frame_hop_in_s: Distance of these values.
        duration_in_s: Length of the audio.
        sampling_rate: Its rate in Hz, before it was resampled.
        flags: What is remarkable, see `whisq.windows.find_flags`; `empty_prompt` is one more.
        error: Why there is no score.
    """

    overall_quality: float | None
    text_alignment: float | None
    frame_overall_quality: tuple[float, ...]
    frame_hop_in_s: float
    duration_in_s: float
    sampling_rate: int
    flags: tuple[str, ...]
    error: str | None


@dataclass(frozen=True, kw_only=True)
class WindowScore:
    """What the scorer says about one window of a clip; the curve is given at the centres of its frames."""

    overall_quality: float
    text_alignment: float | None
    frame_times_in_s: np.ndarray
    frame_scores: np.ndarray


class WhisQScorer:
    """Scores music with a WhisQ model and the encoders it was trained on.

    Args:
        model: The scorer's network.
        audio_encoder: Turns 16 kHz waveforms into the tokens that `model` was trained on.
        text_encoder: The same for prompts; loaded when the first prompt comes if `None`.
        name: What label files call this scorer.
        device: Where to compute.
    """

    def __init__(
        self,
        model: WhisQModel,
        audio_encoder: AudioEncoder,
        text_encoder: TextEncoder | None = None,
        *,
        name: str = "whisq",
        device: str | torch.device = "cpu",
    ):
        if audio_encoder.hidden_size != model.config.audio_hidden_size:
            raise ValueError(
                f"`audio_encoder` must give tokens of width {model.config.audio_hidden_size}, which `model` was trained "
                f"on, got {audio_encoder.name!r} with width {audio_encoder.hidden_size}."
            )
        self.model = model.eval().to(device)
        self.audio_encoder = audio_encoder.to(device)
        self._text_encoder = None if text_encoder is None else text_encoder.to(device)
        self.name = name
        self.device = torch.device(device)
        self._frame_hop = max(1, round(FRAME_HOP_IN_S * audio_encoder.frames_per_s))  # tokens
        self._frame_window = max(self._frame_hop, round(FRAME_WINDOW_IN_S * audio_encoder.frames_per_s))

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> WhisQScorer:
        """Loads a scorer with its encoders.

        Args:
            path_or_id: A folder that `WhisQModel.save_pretrained` or `whisq.train` wrote, or the id of a Hub repository
                with the same files; the embedded scorer when `None`.
            revision: Branch, tag or commit of the Hub repository.
            device: Where to compute.
        """
        check_device(device)
        model, name = load_model(path_or_id, revision=revision)
        return cls(model, load_audio_encoder(model.encoder_name("audio")), name=name, device=device)

    @property
    def text_encoder(self) -> TextEncoder:
        """Encodes prompts; loaded when it is first asked for, since quality needs none."""
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(self.model.encoder_name("text")).to(self.device)
        return self._text_encoder

    @property
    def frame_hop_in_s(self) -> float:
        """Distance of the values of a clip's curve, in seconds."""
        return self._frame_hop / self.audio_encoder.frames_per_s

    def describe(self, *, reads_prompts: bool) -> dict[str, str | float]:
        """What decides the scores, down to the weights, for the record beside them.

        Args:
            reads_prompts: Whether the text encoder has a say.
        """
        facts = {
            "scorer": self.name,
            "audio_encoder": self.audio_encoder.name,
            "text_encoder": self.model.config.text_encoder,
            "listening": LISTENING_VERSION,
            "frame_hop_in_s": self.frame_hop_in_s,
            "frame_window_in_s": self._frame_window / self.audio_encoder.frames_per_s,
            "model_sha256": fingerprint(self.model),
            "audio_encoder_sha256": fingerprint(self.audio_encoder),
        }
        return facts | ({"text_encoder_sha256": fingerprint(self.text_encoder)} if reads_prompts else {})

    def score(
        self,
        audio: Audio | Sequence[Audio],
        sampling_rate: int | None = None,
        prompts: str | Sequence[str | None] | None = None,
        *,
        batch_seconds: float = BATCH_IN_S,
    ) -> list[ClipScore]:
        """Scores clips.

        Args:
            audio: A sound file, mono samples `(samples,)`, several waveforms `(batch, samples)`, or a list of files and
                waveforms of any length.
            sampling_rate: Rate of the waveforms in Hz; a file knows its own.
            prompts: What the music should follow: one text for all clips, or one text or `None` for each.
            batch_seconds: How much audio is scored at once, padding included.

        Returns:
            One score per clip, in a list even if there is one.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A file cannot be decoded, or an argument makes no sense.
        """
        given = _as_list(audio)
        if isinstance(prompts, str) or prompts is None:
            prompts = [prompts] * len(given)
        if len(prompts) != len(given):
            raise ValueError(
                f"`prompts` must be one text or as many as clips, got {len(prompts)} for {len(given)} clips."
            )
        _check_rate(sampling_rate, given)
        clips = [
            read_windows(Path(clip)) if _is_path(clip) else _split(_as_samples(clip), sampling_rate) for clip in given
        ]
        # Windows of like length are scored together: shorter ones are padded to the longest of their batch.
        places = [(c, w) for c, windows in enumerate(clips) if self._is_scorable(windows) for w in range(len(windows))]
        places.sort(key=lambda place: clips[place[0]][place[1]].duration_in_s)
        scores: dict[tuple[int, int], WindowScore] = {}
        for indices in cut_batches([clips[c][w].duration_in_s for c, w in places], batch_seconds):
            batch = [places[index] for index in indices]
            windows = [clips[c][w] for c, w in batch]
            scores |= zip(batch, self.score_windows(windows, [prompts[c] for c, _ in batch]), strict=True)
        return [
            self.combine(windows, [scores[c, w] for w in range(len(windows)) if (c, w) in scores], prompts[c])
            for c, windows in enumerate(clips)
        ]

    @torch.inference_mode()
    def score_windows(self, windows: Sequence[Window], prompts: Sequence[str | None]) -> list[WindowScore]:
        """Scores windows side by side; a window without prompt gets no text alignment."""
        waveforms = torch.nn.utils.rnn.pad_sequence([window.waveform for window in windows], batch_first=True)
        lengths = torch.tensor([len(window.waveform) for window in windows])
        waveforms, lengths = waveforms.to(self.device), lengths.to(self.device)
        states, mask = self.audio_encoder.encode(waveforms, lengths)  # (B, T, D), (B, T)
        quality = self.model(states, mask).overall_quality.float().cpu()  # (B,)
        frames, is_real = self.model.score_frames(states, mask, window=self._frame_window, hop=self._frame_hop)
        frames, is_real = frames.float().cpu().numpy(), is_real.cpu().numpy()  # (B, W)
        times = (np.arange(frames.shape[1]) + 0.5) * self.frame_hop_in_s

        alignment: dict[int, float] = {}
        prompted = [index for index, prompt in enumerate(prompts) if prompt and prompt.strip()]
        if prompted:
            text_states, text_mask = self.text_encoder.encode([prompts[index] for index in prompted])
            output = self.model(states[prompted], mask[prompted], text_states.to(states), text_mask.to(self.device))
            alignment = dict(zip(prompted, output.text_alignment.float().tolist(), strict=True))
        return [
            WindowScore(
                overall_quality=quality[index].item(),
                text_alignment=alignment.get(index),
                frame_times_in_s=times[is_real[index]],
                frame_scores=frames[index][is_real[index]],
            )
            for index in range(len(windows))
        ]

    def combine(self, windows: Sequence[Window], scores: Sequence[WindowScore], prompt: str | None) -> ClipScore:
        """Puts the scores of a clip's windows together, or says why there are none.

        Args:
            windows: All windows of the clip.
            scores: Their scores; none of an unscorable clip.
            prompt: The clip's prompt.
        """
        flags = find_flags(windows)
        if prompt is not None and not prompt.strip():
            flags = (*flags, "empty_prompt")
        error = find_error(flags, windows)
        quality = alignment = None
        curve: np.ndarray = np.zeros(0)
        if error is None:
            lengths = [window.duration_in_s for window in windows if window.duration_in_s > 0]
            quality = float(np.average([score.overall_quality for score in scores], weights=lengths))
            if scores[0].text_alignment is not None:
                alignment = float(np.average([score.text_alignment for score in scores], weights=lengths))
            curve = self._join_curves(windows, scores, quality)
            if not np.isfinite([quality, alignment or 0.0, *curve]).all():
                raise RuntimeError(
                    f"the scorer {self.name!r} gave a score that is not finite; its weights are damaged."
                )
        return ClipScore(
            overall_quality=None if quality is None else _limit(quality),
            text_alignment=None if alignment is None else _limit(alignment),
            frame_overall_quality=tuple(_limit(value) for value in curve.tolist()),
            frame_hop_in_s=self.frame_hop_in_s,
            duration_in_s=clip_duration(windows),
            sampling_rate=windows[0].sampling_rate,
            flags=flags,
            error=error,
        )

    def _is_scorable(self, windows: Sequence[Window]) -> bool:
        return find_error(find_flags(windows), windows) is None

    def _join_curves(self, windows: Sequence[Window], scores: Sequence[WindowScore], mean: float) -> np.ndarray:
        """Reads the windows' curves on one grid over the clip, averages where they overlap, and shifts to `mean`."""
        duration_in_s = clip_duration(windows)
        num_frames = max(1, round(duration_in_s / self.frame_hop_in_s))
        times = (np.arange(num_frames) + 0.5) * self.frame_hop_in_s
        total, count = np.zeros(num_frames), np.zeros(num_frames)
        heard = [window for window in windows if window.duration_in_s > 0]
        for window, score in zip(heard, scores, strict=True):
            offsets = times - window.start_in_s
            is_inside = ((offsets >= 0) & (offsets <= window.duration_in_s + 1e-6)) | (num_frames == 1)
            total[is_inside] += np.interp(offsets[is_inside], score.frame_times_in_s, score.frame_scores)
            count[is_inside] += 1
        curve = total / count.clip(min=1)
        return curve + (mean - curve.mean())


def load_model(path_or_id: str | os.PathLike | None, *, revision: str | None = None) -> tuple[WhisQModel, str]:
    """Loads a WhisQ model and names it by folder or id and by the hash of its weights, which tells versions apart."""
    if path_or_id is None:
        path_or_id = SCORER_DIR
        if not (SCORER_DIR / "config.json").is_file():
            raise FileNotFoundError(
                f"The embedded scorer is missing: {str(SCORER_DIR)!r} holds no config.json. Reinstall the package, or "
                "name another scorer by folder or Hub id."
            )
    folder_or_id, commit, _ = locate(os.fspath(path_or_id), revision)
    if commit is not None:
        from huggingface_hub import snapshot_download

        # Fine-tuned encoders come in folders of the same repository.
        folder_or_id = snapshot_download(folder_or_id, revision=commit)
    model = load_complete(WhisQModel, folder_or_id, use_safetensors=True)
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.float().numpy().tobytes())
    return model, f"{Path(path_or_id).name}@{digest.hexdigest()[:12]}"


def find_error(flags: Sequence[str], windows: Sequence[Window]) -> str | None:
    """Why a clip with these flags has no score."""
    if clip_duration(windows) * SAMPLING_RATE < 1:  # a sample or two at a higher rate are none at 16 kHz
        return "the file holds no samples of the clip"
    if "nan" in flags:
        return "the audio has samples that are not finite"
    if "silent" in flags:
        return "its channels cancel out in the mix" if "out_of_phase" in flags else "the audio is silent"
    if audible_share(windows) < MIN_AUDIBLE_SHARE:
        return f"nothing is heard for {1 - audible_share(windows):.1%} of the clip"
    return None


def _split(samples: np.ndarray, sampling_rate: int) -> list[Window]:
    """Cuts samples `(samples,)` into windows."""
    windows = []
    for start_in_s, duration_in_s in cut_windows(len(samples) / sampling_rate):
        start = round(start_in_s * sampling_rate)
        part = samples[start : start + round(duration_in_s * sampling_rate)]
        windows.append(make_window(part[:, None], sampling_rate, start_in_s=start_in_s))
    return windows


def _is_path(audio: object) -> bool:
    return isinstance(audio, str | os.PathLike)


def _check_rate(sampling_rate: int | None, given: Sequence[Audio]) -> None:
    """Refuses waveforms without a rate, and a rate where there is nothing but files."""
    has_waveforms = not all(map(_is_path, given))
    if has_waveforms and not 1_000 <= (sampling_rate or 0) <= 1_000_000:
        raise ValueError(f"`sampling_rate` must be from 1000 to 1000000 Hz for waveforms, got {sampling_rate}.")
    if given and not has_waveforms and sampling_rate is not None:
        raise ValueError(f"`sampling_rate` must be None for sound files, which know their own, got {sampling_rate}.")


def _as_list(audio: Audio | Sequence[Audio]) -> list:
    if _is_path(audio):
        return [audio]
    if isinstance(audio, torch.Tensor | np.ndarray):
        if audio.ndim not in (1, 2):
            raise ValueError(
                f"`audio` must have shape (samples,) or (batch, samples), got {tuple(audio.shape)}; average channels first."
            )
        return [audio] if audio.ndim == 1 else list(audio)
    return list(audio)


def _as_samples(waveform: torch.Tensor | np.ndarray) -> np.ndarray:
    samples = waveform.detach().cpu().float().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            "each waveform in `audio` must be mono floating-point samples of shape (samples,), "
            f"got shape {samples.shape} of {samples.dtype}."
        )
    return samples.astype(np.float32)


def _limit(score: float) -> float:
    return min(max(score, MIN_SCORE), MAX_SCORE)
