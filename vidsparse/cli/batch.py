"""`vidsparse generate --prompts`: many videos in a folder, with one loading of the model in each process."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer

from vidsparse.cli.dry_run import say_header
from vidsparse.cli.files import check_folder
from vidsparse.cli.frames import note_frames
from vidsparse.cli.messages import counted, is_first, note
from vidsparse.cli.request import Request
from vidsparse.cli.video import sample_video, write_with_report

if TYPE_CHECKING:
    from vidsparse.generation.batch import Folder
    from vidsparse.generation.prompts import Allowed, Line

# What a line of a file may say of its video; the rest of a request is said once, for the model that is loaded.
FILES = ("image", "last_image", "video")  # in the folder of the prompts, unless a line gives a whole path
OPTIONS = (
    *("seed", "negative_prompt", *FILES, "strength", "frames", "height", "width", "steps", "guidance", "fps", "scale"),
)
UNCHECKED = {"seed", "fps", "scale"}  # of them, what fits every model
ANY_MACHINE = {"device", "offload"}  # of a request, what does not change the video


def generate_all(request: Request, prompts: Path, out: Path, ulysses: int | None) -> None:
    """Make the videos of a file of prompts.

    Args:
        request: without its prompt; for what a line does not say.
        prompts: see `vidsparse.generation.prompts.read_prompts`.
        out: the folder, see `vidsparse.generation.batch.Folder`.
        ulysses: how many processes make each video together; None: each process makes videos of its own.

    Raises:
        ValueError: a line or an option that is wrong, or a video in the folder that another request made.
        OSError: the file cannot be read, or the folder cannot be written.
        typer.Exit: a video failed; in the first process alone, as a launcher would end the others.
    """
    from vidsparse.generation.batch import Folder
    from vidsparse.generation.processes import check_processes, joined, own_device

    started = time.perf_counter()
    lines = read_lines(prompts)
    check_folder(out)
    if ulysses is None:
        request = replace(request, device=own_device(request.device))
    else:
        request = replace(request, device=check_processes(ulysses, request.device))
        request.check_shared(ulysses)
    requests = checked_requests(request, lines)
    folder = Folder(out)
    made_before = {name for name, asked in requests.items() if is_made(folder, name, asked)}
    with terminated_as_by_ctrl_c():
        if ulysses is not None:
            with joined(str(request.device)):
                _make_together(folder, request, requests, lines)
        else:
            folder.start(requests)
            if len(made_before) < len(requests):
                batch = _Batch(folder, request, requests, lines)
                folder.make_all(requests, batch.make, batch.failed)
    if is_first():
        failed = _print_summary(folder, lines, made_before, time.perf_counter() - started)
        if failed:
            raise typer.Exit(1)


def read_lines(prompts: Path) -> dict[str, Line]:
    """The lines of a file of prompts by the names of their videos. Raises: see `read_prompts`."""
    from vidsparse.generation.prompts import read_prompts

    return {line.name: _found_beside(prompts, line) for line in read_prompts(prompts, allowed(OPTIONS))}


def allowed(names: Iterable[str]) -> dict[str, Allowed]:
    """What options of a request, by the names of their fields, may be: as on the command line, within their bounds."""
    from vidsparse.generation.prompts import Allowed

    hints, found = get_type_hints(Request, include_extras=True), {}
    for name in names:
        types, option = get_args(hints[name])
        kinds = get_args(types) or (types,)
        alias = option.param_decls[-1].removeprefix("--").replace("-", "_") if option.param_decls else None
        found[name] = Allowed(next(kind for kind in (str, int, float) if kind in kinds), option.min, option.max, alias)
    return found


def _found_beside(prompts: Path, line: Line) -> Line:
    """The line with the whole paths of its files."""
    files = {name: str(prompts.parent / line.options[name]) for name in FILES if name in line.options}
    return replace(line, options={**line.options, **files})


def checked_requests(request: Request, lines: dict[str, Line]) -> dict[str, Request]:
    """The request of each video by its name, after all checks that need no weights.

    Raises:
        ValueError: an option that is wrong, or a line that is; names the line.
    """
    for line in lines.values():
        with naming(line):
            request.read_prompt(line.prompt)
    first, *_ = lines.values()
    checked = set[frozenset[Any]]()
    if not any(name in line.options for line in lines.values() for name in FILES):
        request.with_options(prompt=first.prompt).checked()
        checked.add(frozenset())
    fixed = (request.positions or request.recipe.positions) not in (None, "plain")
    requests: dict[str, Request] = {}
    for name, line in lines.items():
        requests[name] = request.with_options(prompt=line.prompt, **line.options)
        changes = frozenset(option for option in line.options.items() if option[0] not in UNCHECKED)
        with naming(line):
            if fixed and "frames" in line.options:
                raise ValueError("positions are extended for one number of frames; give --frames for all videos")
            if changes not in checked:
                requests[name].checked()
            runs, others = requests[name].known.pipeline_class, requests[first.name].known.pipeline_class
            if runs is not others:
                raise ValueError(
                    f"this video is for {runs.__name__}, and the one of {first.where} for {others.__name__}; put them "
                    "into files of their own"
                )
        checked.add(changes)
    return requests


@contextmanager
def naming(line: Line) -> Iterator[None]:
    """Within the context, an error names the line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{line.where}: {error}") from error
    except OSError as error:  # of a file that the video starts from
        raise OSError(f"{line.where}: {error}") from error


def is_made(folder: Folder, name: str, asked: Request) -> bool:
    """Whether a video is there.

    Raises:
        ValueError: another request made it.
    """
    report = folder.read_report(name)
    if report is None:
        return False
    made = report.get("request")
    if not isinstance(made, dict):
        raise ValueError(f"{folder.report(name)} is not the report of a video; take another --out")
    recipes = {lora: recipe.to_data() for lora, recipe in asked.loras.items()}
    now = {"what its LoRAs were trained with": (report.get("loras", {}), recipes)}
    # A report of an older vidsparse lacks options that are new; they have their defaults.
    now |= {f.name: (made.get(f.name, f.default), getattr(asked, f.name)) for f in fields(Request)}
    for option, (before, after) in now.items():
        if before != after and option not in ANY_MACHINE:
            change = f"{option} {before!r}, not {after!r}" if option in made else f"another {option}"
            raise ValueError(f"{folder.video(name)} was made with {change}; take another --out, or remove that file")
    return True


class _Batch:
    """A loaded model, and the videos that it is to make."""

    def __init__(self, folder: Folder, request: Request, requests: dict[str, Request], lines: dict[str, Line]) -> None:
        from vidsparse.generation.frames import pipeline_geometry

        self.folder, self.requests, self.lines = folder, requests, lines
        kinds = {(asked.size(asked.build_arguments()), asked.denoising_steps): asked for asked in requests.values()}
        for asked in kinds.values():
            say_header(asked, asked.build_pattern(), asked.build_arguments())
        first, *_ = requests.values()
        self.pipe, self.correction = first.load(first.build_pattern(), first.build_correction())
        geometry = pipeline_geometry(self.pipe)
        lengths = (asked.build_arguments().get("num_frames") for asked in requests.values())
        for frames in dict.fromkeys(number for number in lengths if number):
            note_frames(frames, geometry)

    def make(self, name: str, write: bool = True) -> None:
        """Make a video, and write it and its report."""
        from vidsparse.generation.pipeline import fit_arguments

        asked = self.requests[name]
        arguments = fit_arguments(self.pipe, asked.build_arguments())
        done = sample_video(self.pipe, asked, asked.build_pattern(), self.correction, arguments, name)
        if write:
            write_with_report(done, asked, arguments, self.folder.video(name), self.folder.report(name))
            print(f"wrote {self.folder.video(name)} in {done.seconds:.1f} seconds", flush=True)

    def failed(self, name: str, error: Exception) -> None:
        """Say that a video failed.

        Raises:
            RuntimeError: the GPU computes no more, so that every other video would fail too.
        """
        import torch

        from vidsparse.generation.batch import reason_of

        where, file = self.lines[name].where, self.folder.error(name)
        print(f"failed: {where}: {reason_of(error)}; its traceback is in {file}", file=sys.stderr, flush=True)
        if self.pipe._execution_device.type == "cuda":
            torch.cuda.synchronize()  # raises what the GPU cannot recover from; to compute could need more memory


def _make_together(folder: Folder, request: Request, requests: dict[str, Request], lines: dict[str, Line]) -> None:
    """Make each video in all processes together; the first says which is next, and writes. A failure ends the run."""
    from vidsparse import enable_parallelism
    from vidsparse.generation.batch import reason_of
    from vidsparse.generation.processes import told_by_first

    if is_first():
        folder.start(requests)
    if not told_by_first(not all(map(folder.is_made, requests))):
        return
    batch = _Batch(folder, request, requests, lines)
    enable_parallelism(batch.pipe)

    def make(name: str) -> None:
        told_by_first(name)
        batch.make(name)

    def failed(name: str, error: Exception) -> None:
        raise RuntimeError(f"{lines[name].where}: {reason_of(error)}") from error

    if is_first():
        folder.make_all(requests, make, failed)
        told_by_first(None)
    else:
        while (name := told_by_first(None)) is not None:
            batch.make(name, write=False)


@contextmanager
def terminated_as_by_ctrl_c() -> Iterator[None]:
    """Within the context, SIGTERM ends what runs as Ctrl-C does: no file is half written, and none is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        note("the same command makes the rest")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_summary(folder: Folder, lines: dict[str, Line], made_before: set[str], seconds: float) -> int:
    """Print what became of all videos, in all processes; returns how many failed."""
    from rich.console import Console
    from rich.table import Table

    made = [name for name in lines if name not in made_before and folder.is_made(name)]
    sampling = sum(report["seconds"]["total"] for name in made if (report := folder.read_report(name)) is not None)
    reasons = {name: reason for name in lines if (reason := folder.read_reason(name)) is not None}
    rows = [
        ("videos", f"{len(lines):,} in {folder.path}"),
        ("made", f"{len(made):,}, in {sampling:.1f} seconds of sampling"),
        ("skipped", f"{len(made_before):,} that were there"),
        ("failed", f"{len(reasons):,}"),
        *(("", f"{lines[name].where} ({name}): {reason}") for name, reason in reasons.items()),
        ("seconds", f"{seconds:.1f} in all"),
    ]
    table = Table.grid(padding=(0, 2))
    for title, text in rows:
        table.add_row(f"[bold]{title}", text.replace("[", r"\["))
    Console(highlight=False).print(table)
    if reasons:
        note(f"the same command tries the {counted(len(reasons), 'video')} again")
    return len(reasons)
