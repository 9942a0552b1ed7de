"""Makes the videos of the page, one at a time, with a pipeline that stays loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from typing import TYPE_CHECKING, Any

from vidsparse.ui.form import SIZES, Form
from vidsparse.ui.port import CommandLine, Request
from vidsparse.ui.source import command_line, python

if TYPE_CHECKING:
    from vidsparse.generation.compare import Comparison
    from vidsparse.generation.sample import Sample

ANY = "any"  # a prompt, where none matters
OnStep = Callable[[str, int, int], None]  # called with the task, the steps that are done, and all steps


class Stopped(Exception):
    """The user has stopped the video."""


@dataclass(frozen=True)
class Outcome:
    """Videos, and what they took.

    Attributes:
        videos: "sparse", and for a comparison "dense" before it -> an mp4.
        table: rows of a name and a text for each of the videos, the header first.
        report: what ran in the attention layers, with the reasons why some were dense.
        notes: what was made, in a line, and what else the user should know.
        command, python: a command line and a program that make the same.
    """

    videos: dict[str, Path]
    table: tuple[tuple[str, ...], ...]
    report: str
    notes: tuple[str, ...]
    command: str
    python: str


class Studio:
    """Makes the videos of one server.

    The pipeline of the last model stays loaded. Another model takes its place, because few machines hold two.
    """

    def __init__(self, line: CommandLine) -> None:
        self._line = line
        self._folder = TemporaryDirectory(prefix="vidsparse-ui-")
        self._loaded: tuple[str, Any] | None = None
        self._making, self._loading = Lock(), Lock()
        self._stopped: set[str] = set()

    @property
    def folder(self) -> Path:
        """Where the videos are, until `close`."""
        return Path(self._folder.name)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a user can cause, and what the machine can refuse."""
        return self._line.errors

    def close(self) -> None:
        """Remove the videos."""
        self._folder.cleanup()

    def begin(self, session: str) -> None:
        """Forget an earlier `stop`."""
        self._stopped.discard(session)

    def stop(self, session: str) -> None:
        """Stop what a session makes, or waits for, at its next step."""
        self._stopped.add(session)

    def defaults(self, model: str) -> dict[str, str]:
        """The model's default for each of `SIZES`, and "prompt", an example; "" where there is none.

        Raises:
            ValueError, OSError: the model is unknown, or its settings cannot be read.
        """
        known = self._read(Form(ANY, model)).known
        found = {"prompt": known.example_prompt, **{name: known.default(argument) for name, argument in SIZES.items()}}
        return {name: "" if value is None else str(value) for name, value in found.items()}

    def forecast(self, form: Form) -> list[str]:
        """What a form will run, from the settings of its model alone: a line, then notes.

        Raises: see `vidsparse.cli.request.Request.checked`.
        """
        with self._line.notes() as notes, self._loading:
            # The cost does not depend on the prompt, which may not be there yet.
            example = self.defaults(form.model)["prompt"]
            request = self._read(replace(form, prompt=example or ANY))
            pattern, _, arguments = request.checked()
            line = self._line.header(request, pattern, arguments)
            return [line, *_presets(request), *notes]

    def make(self, command: str, form: Form, session: str, on_step: OnStep) -> Outcome:
        """The sparse video of a form, or both videos.

        Args:
            command: "generate" or "compare", which samples each side once, after a step of both.
            session: the one whose `stop` stops it.

        Raises:
            Stopped: `stop` was called since `begin`.
            Others: see `vidsparse.cli.request.Request`, and `vidsparse.generation.sample.sample`.
        """
        from vidsparse.generation.compare import compare
        from vidsparse.generation.sample import sample

        def told(task: str, done: int, steps: int) -> None:
            if session in self._stopped:
                raise Stopped
            on_step(task, done, steps)

        with self._line.notes() as notes, self._making:
            words = form.words(self._line.common)
            request = self._line.read(words)
            pattern, correction, arguments = request.checked()
            told(f"loading {request.model}", 0, 0)
            pipe = self._open(request)
            correction = request.fitting_correction(pipe, pattern, correction)
            arguments = self._line.fitted(pipe, arguments)
            inputs: dict[str, Any] = arguments | request.pixels(arguments)
            shared: dict[str, Any] = dict(correction=correction, impl=request.impl, seed=request.seed)
            both: Comparison | None = None
            if command == "compare":
                both = compare(pipe, pattern, inputs, **shared, repeat=1, on_step=told)
                samples = {"dense": both.dense[0], "sparse": both.sparse[0]}
            else:
                one = sample(pipe, pattern, inputs, **shared, on_step=lambda *steps: told("sparse", *steps))
                samples = {"sparse": one}
            told("writing", 0, 0)
            return Outcome(
                self._written(request, samples, arguments),
                tuple(_table(request, samples, both)),
                str(samples["sparse"].report),
                (_made(samples), *notes),
                command_line(command, words),
                python(request, pattern, correction, arguments),
            )

    def _read(self, form: Form) -> Request:
        return self._line.read(form.words(self._line.common))

    def _open(self, request: Request) -> Any:
        """The pipeline of a request, loaded or kept."""
        if self._loaded is None or self._loaded[0] != request.model:
            self._loaded = None  # its memory is needed
            with self._loading:  # building parts of a model for a forecast would meet the loading of another
                self._loaded = request.model, request.load_pipe()
        return self._loaded[1]

    def _written(self, request: Request, samples: dict[str, Sample], arguments: dict[str, Any]) -> dict[str, Path]:
        from vidsparse.generation.prompts import first_words
        from vidsparse.generation.video import default_scale, to_pixels, write_video

        folder, videos = Path(mkdtemp(dir=self.folder)), {}
        for side, done in samples.items():
            videos[side] = folder / f"{first_words(request.prompt) or 'video'}-{request.seed}-{side}.mp4"
            pixels = to_pixels(done.frames, request.scale or default_scale(done.frames))
            write_video(videos[side], pixels, request.frame_rate, self._line.comment(done, request, arguments))
        return videos


def _made(samples: dict[str, Sample]) -> str:
    """What was made, in a line."""
    frames, height, width = samples["sparse"].frames.shape[:3]
    seconds = sum(done.seconds for done in samples.values())
    return f"{' and '.join(samples)}: {frames} frames of {width}x{height} in {seconds:.1f} seconds"


def _presets(request: Request) -> list[str]:
    """A line for the preset of a request, if it has one."""
    return [] if request.chosen is None else [f"preset {request.chosen.name}: {request.chosen.summary}"]


def _table(request: Request, samples: dict[str, Sample], both: Comparison | None) -> list[tuple[str, ...]]:
    """What the videos took, and how alike and how right they are."""
    rows: list[tuple[str, ...]] = [("", *samples)]
    if all(done.denoising_seconds is not None for done in samples.values()):
        rows.append(("seconds denoising", *(f"{done.denoising_seconds:.1f}" for done in samples.values())))
    rows.append(("seconds in attention layers", *(f"{done.attention_seconds:.1f}" for done in samples.values())))
    rows.append(("density", *(f"{done.report.density:.3f}" for done in samples.values())))
    if both is not None:
        clock = "denoising_seconds" if "denoising_seconds" in both.clocks else "seconds"
        rows.append(("speed-up of denoising" if clock != "seconds" else "speed-up", "", f"{both.speedup(clock):.2f}x"))
        rows.append(
            ("PSNR to dense", "", "identical" if both.difference.psnr is None else f"{both.difference.psnr:.1f} dB")
        )
        rows.append(("SSIM to dense", "", f"{both.difference.ssim:.3f}"))
    scores = [request.known.judge(done.frames, request.prompt) for done in samples.values()]
    if (first := scores[0]) is not None:
        rows += [(f"judge: {name}", *(f"{score[name]:.2f}" for score in scores if score)) for name in first]
    return rows
