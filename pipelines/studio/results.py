"""How a take is shown: a player, what there is to say, a picture, files to take away, and what can be made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.clips import record_path
from pipelines.studio.editing import ACTIONS
from pipelines.studio.history import Take
from pipelines.studio.making import describe_take
from pipelines.studio.pictures import draw_clip
from qamdt.audio import write_audio
from qamdt.sound_files import read_samples


@dataclass(frozen=True)
class Result:
    """Where a take is shown on the page.

    Args:
        shown: The components that `show_take` has values for, in their order.
        key: The one of them that holds which take it is.
        actions: A button for each of `ACTIONS`.
    """

    shown: tuple[Any, ...]
    key: Any
    actions: dict[str, Any]


def build_result(gr, name: str, *, visible: bool = True, is_one_of_two: bool = False) -> Result:
    """Builds the parts of a result; all but the player are hidden until there is one.

    Args:
        gr: The module `gradio`.
        name: What the take is called.
        visible: Whether the player is there from the beginning.
        is_one_of_two: Whether another result stands beside it, so that buttons have to say whose they are.
    """
    player = gr.Audio(label=f"Take {name}", interactive=False, buttons=["download"], visible=visible)
    text = gr.Markdown()
    picture = gr.Plot(label=f"Take {name}: waveform, spectrogram and quality", show_label=False, visible=False)
    label = f"Take {name}: {{}}".format if is_one_of_two else str.capitalize
    with gr.Row():
        sound = gr.DownloadButton(label("sound"), visible=False, min_width=110)
        flac = gr.DownloadButton(label("flac"), visible=False, min_width=110)
        record = gr.DownloadButton(label("how it was made"), visible=False, min_width=160)
    with gr.Row(visible=False) as row:
        actions = {action: gr.Button(label(name), size="sm", min_width=110) for action, name in ACTIONS.items()}
    key = gr.State(None)
    return Result(shown=(player, text, picture, sound, flac, record, row, key), key=key, actions=actions)


def show_take(gr, take: Take, score: dict | None = None) -> list:
    """The values of a result's parts."""
    visible = gr.update(visible=True)
    return [
        gr.update(value=str(take.path), visible=True),
        describe_take(take.record, score),
        gr.update(value=draw_clip(take.path, score), visible=True),
        gr.update(value=str(take.path), visible=True),
        gr.update(value=str(flac_of(take.path)), visible=True),
        gr.update(value=str(record_path(take.path)), visible=True),
        visible,
        take.key,
    ]


def show_takes(gr, shown: list[list], count: int) -> list:
    """The values of the parts of so many results, of which the last may be missing."""
    hidden = gr.update(visible=False)
    missing = [gr.update(value=None, visible=False), "", hidden, hidden, hidden, hidden, hidden, None]
    return [part for result in (*shown, *[missing] * (count - len(shown))) for part in result]


def flac_of(path: Path) -> Path:
    """A take as a flac file, beside it; made when it is first asked for."""
    flac = path.with_suffix(".flac")
    if not flac.exists():
        samples, rate = read_samples(path, is_mixed=True)
        write_audio(flac, samples[:, 0], rate)
    return flac
