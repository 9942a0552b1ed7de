"""The page, in Gradio: its inputs, its buttons and what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from vidsparse.generation.models import SHIPPING
from vidsparse.ui import render
from vidsparse.ui.form import ATTENTION, CORRECTIONS, OWN, RECOMMENDED, SIZES, USUAL, Form, has_density
from vidsparse.ui.studio import Outcome, Stopped, Studio

Values = Mapping[Any, Any]  # component -> its value
QUIET: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
LIVE: dict[str, Any] = dict(trigger_mode="always_last", **QUIET)
WELCOME = (
    "Generate makes the sparse video. Compare with dense makes both, and measures how fast and how alike they are."
)
DAY = 3600, 86400  # seconds: how often old videos are removed, and how old they are
CSS = """
.gradio-container main {width: 100%; max-width: 1280px; margin: 0 auto}
#forecast, #status {font-size: .9rem; line-height: 1.5; min-height: 1.5rem}
#forecast p, #status p {margin: 0; overflow-wrap: anywhere}
.buttons button {white-space: nowrap; flex: 1 1 auto}
.error {color: #b3261e; font-weight: 600}
.dark .error {color: #ff8a80}
#numbers table {border-collapse: collapse; border: none; width: 100%}
#numbers th, #numbers td {padding: .3rem .6rem; text-align: right; border: none}
#numbers tr {border: none; border-bottom: 1px solid var(--border-color-primary)}
#numbers th:first-child, #numbers td:first-child {text-align: left}
"""


def build(studio: Studio, model: str) -> gr.Blocks:
    """The page.

    Args:
        model: the one that is chosen at first.

    Raises: see `Studio.defaults`.
    """
    known = studio.defaults(model)
    page = gr.Blocks(title="vidsparse", analytics_enabled=False, fill_width=True, delete_cache=DAY)
    with page:
        gr.Markdown("# vidsparse\nVideos with sparse attention, beside the dense ones")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                fields = _inputs(known, model)
                forecast = gr.HTML(elem_id="forecast")
                with gr.Row(elem_classes="buttons"):
                    generate = gr.Button("Generate", min_width=90)
                    compare = gr.Button("Compare with dense", variant="primary", min_width=150)
                    stop = gr.Button("Stop", variant="stop", interactive=False, min_width=70)
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(render.paragraphs([WELCOME]), elem_id="status")
                shown = [status, *_outputs()]
        buttons, inputs = [generate, compare, stop], set(fields.values())
        name, attention, density = (fields[x] for x in ("model", "attention", "density"))

        def form(values: Values) -> Form:
            return _form(studio, {name: values[field] for name, field in fields.items()})

        def foretell(values: Values) -> str:
            return _said(studio, lambda: studio.forecast(form(values)))

        def settle(values: Values) -> Any:
            """Enable the density where the attention has one."""
            try:
                enabled = has_density(values[attention], values[name].strip())
            except studio.errors:  # the forecast says what is wrong
                enabled = True
            return gr.update(interactive=True) if enabled else gr.update(interactive=False, value="")

        def take(model: str) -> list[Any]:
            """Show the defaults of another model."""
            try:
                own = studio.defaults(model.strip())
            except studio.errors:  # the forecast says what is wrong
                return [gr.skip()] * (1 + len(SIZES))
            return [gr.update(placeholder=own["prompt"]), *(own[size] for size in SIZES)]

        def maker(command: str) -> Callable[..., list[Any]]:
            def make(values: Values, request: gr.Request, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
                made: list[Outcome] = []

                def on_step(task: str, done: int, steps: int) -> None:
                    progress((done, steps) if steps else None, desc=task, unit="steps")

                def notes() -> tuple[str, ...]:
                    made.append(studio.make(command, form(values), _session(request), on_step))
                    return made[0].notes

                said = _said(studio, notes)
                return [said, *(_results(made[0]) if made else [gr.skip()] * (len(shown) - 1))]

            return make

        def begin(request: gr.Request) -> list[Any]:
            studio.begin(_session(request))
            return ["", *_enabled(False)]

        def end(request: gr.Request) -> None:
            studio.stop(_session(request))

        other_model = [name.blur, name.submit]
        changes = [field.change for part, field in fields.items() if part not in ("prompt", "model")]
        gr.on([page.load, *changes, *other_model], foretell, inputs, forecast, **LIVE)
        gr.on([page.load, attention.change, *other_model], settle, {name, attention}, density, **LIVE)
        gr.on(other_model, take, name, [fields[x] for x in ("prompt", *SIZES)], **LIVE)
        stop.click(end, None, None, queue=False, **QUIET)
        page.unload(end)
        for button, command in ((generate, "generate"), (compare, "compare")):
            began = button.click(begin, None, [status, *buttons], queue=False, **QUIET)
            done = began.then(
                *(maker(command), inputs, shown),
                show_progress_on=shown[2],  # the sparse video, which is always there
                api_name=command,
                concurrency_limit=1,
                concurrency_id="video",
            )
            done.then(lambda: _enabled(True), None, buttons, queue=False, **QUIET)
    return page


def serve(page: gr.Blocks, studio: Studio, host: str, port: int, *, browser: bool) -> str:
    """Start to serve a page, without a link from elsewhere; returns its address.

    Args:
        browser: open the page in one.

    Raises:
        OSError: the port is taken.
    """
    theme = gr.themes.Default(primary_hue="slate", font=["ui-sans-serif", "system-ui", "sans-serif"])
    address: str
    _, address, _ = page.queue().launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        allowed_paths=[str(studio.folder)],
        theme=theme,
        css=CSS,
    )
    return address


def _inputs(known: Mapping[str, str], model: str) -> dict[str, Any]:
    """Field of `Form` -> its component, laid out."""
    fields: dict[str, Any] = {
        "prompt": gr.Textbox(known["prompt"], label="Prompt", lines=2),
        "model": gr.Textbox(model, label="Model", info=f"{SHIPPING}, the folder of a diffusers pipeline, or a Hub id"),
    }
    with gr.Row():
        fields["attention"] = gr.Dropdown(list(ATTENTION), value=RECOMMENDED, label="Attention", scale=2, min_width=160)
        fields["density"] = _short("Density", "", "its own")
    with gr.Row():
        fields["correction"] = gr.Dropdown(list(CORRECTIONS), value=OWN, label="Correction", scale=2, min_width=160)
        fields["dense_steps"] = _short("Dense steps", "", "its own")
    for row in (("frames", "height", "width"), ("steps", "guidance", "seed")):
        with gr.Row():
            fields |= {name: _short(name.capitalize(), ({**USUAL, **known})[name]) for name in row}
    return fields


def _short(label: str, value: str, placeholder: str = "") -> Any:
    return gr.Textbox(
        value, label=label, placeholder=placeholder, max_lines=1, min_width=80, elem_id=label.lower().replace(" ", "-")
    )


def _outputs() -> list[Any]:
    """Both videos, the table, and what there is to read and to copy."""
    with gr.Row():
        videos = [
            gr.Video(label=side, elem_id=side, visible=side == "sparse", autoplay=True, loop=True, min_width=220)
            for side in ("dense", "sparse")
        ]
    numbers = gr.HTML(elem_id="numbers")
    with gr.Tabs(visible=False) as tabs:
        texts = []
        languages: dict[str, Any] = {"What ran": None, "Command line": "shell", "Python": "python"}
        for title, language in languages.items():
            with gr.Tab(title):
                plain: dict[str, Any] = dict(show_label=False, show_line_numbers=False, interactive=False)
                texts.append(gr.Code(language=language, wrap_lines=True, **plain))
    return [*videos, numbers, tabs, *texts]


def _results(made: Outcome) -> list[Any]:
    """What the components of `_outputs` show."""
    videos = [
        gr.update(value=str(made.videos[side]), visible=True) if side in made.videos else gr.update(visible=False)
        for side in ("dense", "sparse")
    ]
    return [*videos, render.table(made.table), gr.update(visible=True), made.report, made.command, made.python]


def _enabled(idle: bool) -> list[Any]:
    """The buttons "Generate", "Compare with dense" and "Stop"."""
    return [gr.update(interactive=x) for x in (idle, idle, not idle)]


def _session(request: gr.Request) -> str:
    return request.session_hash or ""


def _said(studio: Studio, lines: Callable[[], Any]) -> str:
    """The lines, or one that says why there are none."""
    try:
        return render.paragraphs(lines())
    except Stopped:
        return render.paragraphs(["stopped"])
    except studio.errors as reason:
        return render.error(reason)


def _form(studio: Studio, given: Mapping[str, str | None]) -> Form:
    """The form of what the fields hold; what the model does by itself is left out. Raises: see `Studio.defaults`."""
    values = {name: (value or "").strip() for name, value in given.items()}
    known = studio.defaults(values["model"])
    return Form(**values | {size: "" for size in SIZES if values[size] == known[size]})
