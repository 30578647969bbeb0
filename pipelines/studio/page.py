"""The page: what is on it, and what happens when it is touched.

Gradio is told to phone nobody: no analytics, no fonts or scripts from elsewhere, no run history of its own.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

from pipelines.clips import record_path
from pipelines.samplers import NUM_STEPS, NUM_STEPS_OF_CHANGE
from pipelines.service.acceptance import Order
from pipelines.service.scoring import Scoring
from pipelines.studio.editing import (
    ACTIONS,
    CHANGING,
    FIELDS,
    HINTS,
    EditForm,
    find_action,
    middle_span,
    write_spans,
)
from pipelines.studio.history import Take, find_take, list_takes
from pipelines.studio.making import COMPARISONS, Form, describe_score, follow, sound_of, status, submit
from pipelines.studio.pictures import draw_clip
from pipelines.studio.quality_curve import SCRIPT, START, STYLE, TEMPLATE, from_quality
from pipelines.studio.results import Result, build_result, show_take, show_takes
from qamdt.files import read_json
from qamdt.quality_words import MAX_SCORE, MIN_SCORE


# The curve and the slider take turns; whether the curve is drawn is a class of the page, set by `DRAW_OR_SLIDE`.
# It stands in the head because gradio narrows the selectors of `css` to what lies inside its own container.
HEAD = """<style>
body:not(.draws-quality) #quality-curve, body.draws-quality #quality-score { display: none !important; }
</style>"""
CSS = """
.qamdt-status progress { width: 100%; display: block; margin-top: 6px; }
@media (max-width: 500px) { .gradio-container { padding: 8px !important; } }
"""
DRAW_OR_SLIDE = "drawn => { document.body.classList.toggle('draws-quality', drawn); return []; }"
HELP = "Instruments, style, mood. What the model cannot do, it says beside the result."


def mount_studio(app):
    """Puts the page in front of a service's app, at `/`.

    Args:
        app: A `fastapi.FastAPI` that `pipelines.service.app.create_app` built.
    """
    queue, settings = app.state.queue, app.state.settings
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("GRADIO_TEMP_DIR", str((settings.folder / "page-cache").resolve()))
    import gradio as gr

    page = Studio(queue, settings, app.state.scoring).build()
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(queue.jobs.folder.resolve())],
        blocked_paths=[str((settings.folder / "lock").resolve())],
        max_file_size=settings.max_upload_bytes,
        show_error=True,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        head=HEAD,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )


class Studio:
    """The page of one service.

    Args:
        queue: Makes the music.
        settings: The service's limits.
        scoring: Scores it.
    """

    def __init__(self, queue, settings, scoring: Scoring):
        self.queue = queue
        self.settings = settings
        self.scoring = scoring

    def build(self):
        """Builds the page, a `gradio.Blocks`."""
        import gradio as gr

        with gr.Blocks(title="QA-MDT studio", analytics_enabled=False, delete_cache=(3600, 86_400)) as page:
            gr.Markdown("# QA-MDT studio\nMusic from text, at the quality you ask for.")
            with gr.Tabs() as tabs:
                with gr.Tab("Make", id="make"):
                    self._build_make(gr)
                with gr.Tab("From a recording", id="edit"):
                    self._build_edit(gr)
                with gr.Tab("History", id="history") as history_tab:
                    self._build_history(gr)
                with gr.Tab("Score my file", id="score"):
                    self._build_score(gr)
            self._wire(gr, page, tabs, history_tab)
        page.queue(default_concurrency_limit=16, max_size=64)
        return page

    def _build_make(self, gr) -> None:
        knows_music = _knows_music(self.queue.engine.model)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                prompt = gr.Textbox(
                    value="", label="Describe the music", info=HELP, lines=2, max_length=self.settings.max_prompt, autofocus=True,
                    placeholder="calm solo piano ballad in C major, slow tempo",
                )  # fmt: skip
                seconds = gr.Slider(
                    1, min(30, self.settings.max_seconds), value=10, step=0.5, label="Length in seconds"
                )
                loop = gr.Checkbox(label="A loop, which goes on with its beginning")
                is_curve = gr.Checkbox(label="Quality changes over the clip: draw it")
                score = gr.Slider(
                    MIN_SCORE,
                    MAX_SCORE,
                    value=4.5,
                    step=0.1,
                    label="Quality",
                    info="1 is damaged, 5 is clean",
                    elem_id="quality-score",
                )
                curve = gr.HTML(
                    json.dumps(START), html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, elem_id="quality-curve",
                )  # fmt: skip
                with gr.Row(visible=knows_music):
                    bpm = gr.Textbox("", label="Tempo in bpm", placeholder="90", min_width=100)
                    key = gr.Textbox("", label="Key", placeholder="A minor", min_width=100)
                    chords = gr.Textbox("", label="Chords", placeholder="Am F C G", min_width=140)
                compare = gr.Radio(COMPARISONS, value=COMPARISONS[0], label="Make")
                with gr.Accordion("More", open=False):
                    steps = gr.Slider(1, self.settings.max_steps, value=NUM_STEPS, step=1, label="Steps")
                    guidance = gr.Slider(1, 10, value=3.5, step=0.1, label="Guidance")
                    seed = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=2**53 - 2)
                    negative_prompt = gr.Textbox("", label="Move away from", max_length=self.settings.max_prompt)
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", elem_id="generate")
                    self.stop = gr.Button("Cancel")
            with gr.Column(scale=6, min_width=320):
                self.status = gr.HTML(status("Ready."))
                self.results = [build_result(gr, name, visible=name == "A", is_one_of_two=True) for name in "AB"]
        self.form = [
            prompt, seconds, loop, is_curve, score, curve, bpm, key, chords, compare, steps, guidance, seed, negative_prompt
        ]  # fmt: skip
        self.running = gr.State([])
        is_curve.change(None, is_curve, None, js=DRAW_OR_SLIDE)

    def _build_edit(self, gr) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                recording = gr.Audio(label="Recording", type="filepath", sources=["upload"], buttons=["download"])
                action = gr.Radio(
                    [(label.capitalize(), action) for action, label in ACTIONS.items()],
                    value="continue",
                    label="What to do with it",
                    info=HINTS["continue"],
                )
                prompt = gr.Textbox(value="", label="Describe the music", lines=2, max_length=self.settings.max_prompt)
                score = gr.Slider(MIN_SCORE, MAX_SCORE, value=4.5, step=0.1, label="Quality of what is made")
                seconds = gr.Slider(
                    1, self.settings.max_seconds, value=20, step=0.5, label="Length of the whole in seconds"
                )
                spans = gr.Textbox("", label="Parts to play anew, in seconds", placeholder="2-4.5, 8-9", visible=False)
                strength = gr.Slider(0, 1, value=0.5, step=0.05, label="How much is changed", visible=False)
                with gr.Accordion("More", open=False):
                    steps = gr.Slider(1, self.settings.max_steps, value=NUM_STEPS_OF_CHANGE, step=1, label="Steps")
                    guidance = gr.Slider(1, 10, value=3.5, step=0.1, label="Guidance")
                    seed = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=2**53 - 2)
                with gr.Row():
                    self.edit_go = gr.Button("Make it", variant="primary", elem_id="edit")
                    self.edit_stop = gr.Button("Cancel")
            with gr.Column(scale=6, min_width=320):
                self.edit_status = gr.HTML(status("Choose a recording, or send a take here."))
                self.edited = build_result(gr, "from the recording")
        self.action = action
        self.edit_form = [recording, action, prompt, score, seconds, spans, strength, steps, guidance, seed]
        self.changing = [prompt, score, seconds, spans, strength]  # as `CHANGING` names them
        self.edit_running = gr.State([])

    def _build_history(self, gr) -> None:
        self.takes = gr.Dropdown(label="Takes, newest first", choices=[], interactive=True)
        with gr.Row():
            self.restore = gr.Button("Restore these settings", min_width=160)
            self.reroll = gr.Button("Restore with another seed", min_width=160)
            self.refresh = gr.Button("Refresh", min_width=100)
        self.old = build_result(gr, "from the history")

    def _build_score(self, gr) -> None:
        gr.Markdown("How good a recording sounds, as a whole and over time. The file stays on this machine.")
        self.upload = gr.Audio(label="Sound file", type="filepath", sources=["upload"], buttons=["download"])
        self.upload_prompt = gr.Textbox(
            value="", label="What it should follow, if anything", max_length=self.settings.max_prompt
        )
        self.score_button = gr.Button("Score", variant="primary")
        self.score_text = gr.Markdown()
        self.score_picture = gr.Plot(label="Quality over time", visible=False)

    def _wire(self, gr, page, tabs, history_tab) -> None:
        outputs = [self.status, self.running, *(part for result in self.results for part in result.shown)]
        made = self.go.click(self.make, self.form, outputs, show_progress="hidden")
        made.then(self.list_choices, self.takes, self.takes, show_progress="hidden")
        self.form[0].submit(self.make, self.form, outputs, show_progress="hidden")
        self.stop.click(self.cancel, self.running, None, queue=False)
        outputs = [self.edit_status, self.edit_running, *self.edited.shown]
        edited = self.edit_go.click(self.edit, self.edit_form, outputs, show_progress="hidden")
        edited.then(self.list_choices, self.takes, self.takes, show_progress="hidden")
        self.edit_stop.click(self.cancel, self.edit_running, None, queue=False)
        self.action.change(self.show_fields, self.action, [self.action, *self.changing], show_progress="hidden")
        for event in (page.load, history_tab.select, self.refresh.click):
            event(self.list_choices, self.takes, self.takes, show_progress="hidden")
        self.takes.change(self.show_old, self.takes, list(self.old.shown), show_progress="hidden")
        restored = [*self.form, *self.edit_form, tabs]
        self.restore.click(self.restore_take, self.takes, restored, show_progress="hidden")
        self.reroll.click(self.restore_with_another_seed, self.takes, restored, show_progress="hidden")
        for result in (*self.results, self.edited, self.old):
            for action, button in result.actions.items():
                send = partial(self.send, action)
                button.click(send, result.key, [*self.edit_form, tabs], show_progress="hidden")
        self.score_button.click(
            self.score_upload, [self.upload, self.upload_prompt], [self.score_text, self.score_picture]
        )

    # What happens.

    def make(self, *values):
        """Makes what the form says; yields status, the ids of the jobs, and the parts of both results."""
        form = Form(**dict(zip((field.name for field in fields(Form)), values, strict=True)))
        yield from self._make(lambda: [Order(request=request) for request in form.requests()], self.results)

    def edit(self, *values):
        """Makes of a recording what the form says; yields status, the id of the job, and the parts of the result."""
        form = EditForm(**dict(zip((field.name for field in fields(EditForm)), values, strict=True)))
        yield from self._make(lambda: [form.order()], [self.edited])

    def _make(self, read_orders: Callable[[], list[Order]], results: list[Result]):
        import gradio as gr

        try:
            jobs = submit(read_orders(), self.queue, self.settings)
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        ids = [job.id for job in jobs]
        nothing = [gr.update()] * sum(len(result.shown) for result in results)
        for now in follow(jobs, self.queue):
            yield [now, ids, *nothing]
        try:
            paths = [sound_of(job, self.queue) for job in jobs]
        except ValueError as error:
            yield [status(f"No music: {error}"), [], *nothing]
            return
        takes = [self._take(path) for path in paths]
        shown = [show_take(gr, take) for take in takes]
        yield [status("Done. Scoring it."), [], *show_takes(gr, shown, len(results))]
        scores = [self.scoring.score_file(take.path, take.request.text) for take in takes]
        shown = [show_take(gr, take, score) for take, score in zip(takes, scores, strict=True)]
        yield [status("Done."), [], *show_takes(gr, shown, len(results))]

    def show_fields(self, action: str):
        """Shows what an action listens to, and hides the rest."""
        import gradio as gr

        visible = [gr.update(visible=name in FIELDS.get(action, ())) for name in CHANGING]
        return [gr.update(info=HINTS.get(action, "")), *visible]

    def send(self, action: str, key: str | None):
        """Puts a take into the form for recordings, to do something with it."""
        import gradio as gr

        take = self._find(key)
        played = take.record["sound"]["seconds"]
        seconds = min(round(2 * played), self.settings.max_seconds)
        score = _score_of(take.request.quality)
        quiet = gr.update()
        form = [str(take.path), action, take.request.text, score, seconds, middle_span(played), *[quiet] * 3, 0]
        return [*form, gr.Tabs(selected="edit")]

    def cancel(self, ids: list[str]) -> None:
        """Gives up what is being made."""
        for job_id in ids:
            self.queue.cancel(job_id)

    def list_choices(self, chosen: str | None):
        """What the history has; what was chosen stays so, or else the newest is."""
        import gradio as gr

        choices = [(take.title, take.key) for take in list_takes(self.queue)]
        keys = [key for _, key in choices]
        return gr.update(choices=choices, value=chosen if chosen in keys else next(iter(keys), None))

    def show_old(self, key: str | None):
        """Shows a take of the history."""
        import gradio as gr

        take = find_take(self.queue, key)
        return [gr.update()] * len(self.old.shown) if take is None else show_take(gr, take)

    def restore_take(self, key: str | None, seed: int | None = None):
        """Puts the settings of a take back into the form."""
        import gradio as gr

        take = self._find(key)
        request, played = take.request, take.record["sound"]["seconds"]
        seed = request.seed if seed is None else seed
        untouched = gr.update()
        if take.recording is not None:
            spans = write_spans(request.spans)
            length = request.seconds or played
            strength = untouched if request.strength is None else request.strength
            form = [str(take.recording), find_action(request), request.text, _score_of(request.quality), length, spans]
            edit_form = [*form, strength, request.steps, request.guidance, seed]
            return [*[untouched] * len(self.form), *edit_form, gr.Tabs(selected="edit")]
        is_curve = isinstance(request.quality, tuple)
        form = [
            request.text,
            played,
            request.loop,
            is_curve,
            untouched if is_curve else _score_of(request.quality),
            from_quality(request.quality, played) if is_curve else untouched,
            "" if request.bpm is None else f"{request.bpm:g}",
            request.key or "",
            request.chords if isinstance(request.chords, str) else "",
            COMPARISONS[0],
            request.steps,
            request.guidance,
            seed,
            request.negative_prompt,
        ]
        return [*form, *[untouched] * len(self.edit_form), gr.Tabs(selected="make")]

    def restore_with_another_seed(self, key: str | None):
        """The same, to hear something else of it."""
        return self.restore_take(key, seed=random.randrange(2**31))

    def score_upload(self, path: str | None, prompt: str):
        """Scores a file of the user's own."""
        import gradio as gr

        from pipelines.service.errors import ServiceError

        if path is None:
            raise gr.Error("Choose a sound file first.", print_exception=False)
        try:
            score = self.scoring.score_file(Path(path), prompt.strip() or None)
        except ServiceError as error:
            raise gr.Error(error.message, print_exception=False) from error
        if score["error"]:
            return describe_score(score), gr.update(visible=False)
        return describe_score(score), gr.update(value=draw_clip(Path(path), score), visible=True)

    def _take(self, path: Path) -> Take:
        record = read_json(record_path(path))
        return Take(path=path, made_at=path.stat().st_mtime, record=record)

    def _find(self, key: str | None) -> Take:
        import gradio as gr

        take = find_take(self.queue, key)
        if take is None:
            raise gr.Error("Choose a take first.", print_exception=False)
        return take


def _score_of(quality) -> float:
    """Where the slider stands for a quality; in the middle of a curve that it cannot show."""
    if isinstance(quality, tuple):
        scores = [point[1] if isinstance(point, tuple) else point for point in quality]
        return round(sum(scores) / len(scores), 1)
    return {"low": 1.5, "medium": 3.5, "high": 4.5, None: 4.5}.get(quality, quality)


def _knows_music(model: str) -> bool:
    """Whether a model takes tempo, key and chords; one that is not here might."""
    config = Path(model) / "transformer" / "config.json"
    return not config.is_file() or bool(read_json(config).get("num_music_features"))
