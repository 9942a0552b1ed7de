"""`vidsparse compare --prompts`: several settings beside dense attention, over many prompts and seeds, in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from vidsparse.cli.batch import checked_requests, is_made, naming, read_lines, terminated_as_by_ctrl_c
from vidsparse.cli.files import check_folder
from vidsparse.cli.messages import counted, note
from vidsparse.cli.request import Request
from vidsparse.cli.settings import dense_request, naming_setting, read_settings, rivals
from vidsparse.cli.study_run import Asked, Requests, StudyRun
from vidsparse.cli.versions import machine
from vidsparse.generation.study import DENSE

if TYPE_CHECKING:
    from vidsparse.generation.batch import Folder
    from vidsparse.generation.prompts import Line

MOST_SEED = 2**63 - 1


def study(request: Request, asked: Asked) -> None:
    """Make the videos of a study that are missing, and summarise all.

    Raises:
        ValueError: a line, a setting or an option that is wrong, or a video in the folder that other options made.
        OSError: a file cannot be read, or the folder cannot be written.
        RuntimeError: another process works on the folder.
        typer.Exit: a video failed.
    """
    from vidsparse.generation.batch import Folder
    from vidsparse.generation.study import alone_in, check_space

    lines = read_lines(asked.prompts)
    settings = read_settings(request, asked.settings, asked.sweeps)
    others = rivals(request) if asked.rivals else {}
    check_folder(asked.out)
    requests = _requests(request, settings | others, lines, asked)
    folders = {setting: Folder(asked.out / setting) for setting in requests}
    made = {
        (setting, name): _essentials(folders[setting], name, one, asked)
        for setting, of_setting in requests.items()
        for name, one in of_setting.items()
        if is_made(folders[setting], name, one)
    }
    backend = _recorded_backend(made, asked)
    missing = [name for name in requests[DENSE] if (DENSE, name) not in made]
    first = next(iter(requests[DENSE].values()))
    check_space(asked.out, len(missing), first.size(first.build_arguments()))
    asked.out.mkdir(parents=True, exist_ok=True)
    running = StudyRun(asked, folders, requests, set(others), made, backend)
    with alone_in(asked.out), terminated_as_by_ctrl_c():
        for setting, folder in folders.items():
            folder.start(requests[setting])
        running.forget_incomplete()
        if len(made) < sum(map(len, requests.values())):
            running.make_all()
        running.summarise(told=True)
    if running.failures:
        note(f"the same command tries the {counted(len(running.failures), 'video')} again")
        raise typer.Exit(1)


def _requests(request: Request, settings: Mapping[str, Request], lines: dict[str, Line], asked: Asked) -> Requests:
    """Every video of a study, after all checks that need no weights.

    Raises:
        ValueError: what is wrong, with the line or the setting.
    """
    dense = checked_requests(dense_request(request), lines)
    first, *_ = lines
    shapes = {name: (one.size(one.build_arguments()), one.denoising_steps) for name, one in dense.items()}
    for name, line in lines.items():
        with naming(line):
            if shapes[name] != shapes[first]:
                raise ValueError(
                    "its frames, size or steps are not those of the first prompt, and times of different sizes cannot "
                    "be compared; leave them out of the file, or make a study of each size"
                )
            if dense[name].seed + asked.seeds > MOST_SEED:
                raise ValueError(f"its seed, {dense[name].seed}, leaves no room for {asked.seeds} seeds")
    extra = asked.rivals and asked.seeds == 1  # a second dense video, to say how far apart two seeds are
    found = {DENSE: _seeded(dense, asked.seeds + extra)}
    for setting, common in settings.items():
        with naming_setting(setting):
            ours = {name: common.with_options(prompt=line.prompt, **line.options) for name, line in lines.items()}
            leader = ours[first]
            leader.build_correction()
            leader.check(leader.build_pattern(), leader.build_arguments())
        found[setting] = _seeded(ours, asked.seeds)
    return found


def _seeded(requests: Mapping[str, Request], seeds: int) -> dict[str, Request]:
    """The request of each prompt and seed; those of one prompt follow each other."""
    return {
        f"{name}-seed{one.seed + number}": one.with_options(seed=one.seed + number)
        for name, one in requests.items()
        for number in range(seeds)
    }


def _essentials(folder: Folder, name: str, request: Request, asked: Asked) -> dict[str, Any]:
    """What a summary needs of a video that is there.

    Raises:
        ValueError: it was made on another machine, or without a measure that is asked for.
    """
    from vidsparse.generation.study import essentials

    report = folder.read_report(name) or {}
    video, here = folder.video(name), machine(*request.place)
    if "difference" not in report:
        raise ValueError(f"{video} is not of a study; take another --out")
    if (before := (report["device_name"], report["dtype"])) != (now := (here["device_name"], here["dtype"])):
        raise ValueError(
            f"{video} was timed on {' in '.join(before)}, and this is {' in '.join(now)}; take another --out"
        )
    if asked.lpips and report["difference"] and report["difference"]["lpips"] is None:
        raise ValueError(f"{video} was compared without --lpips; take another --out, or leave out --lpips")
    return essentials(report) | {"backend": report["dense_backend"]}


def _recorded_backend(made: Mapping[tuple[str, str], Mapping[str, Any]], asked: Asked) -> str | None:
    """The backend of dense attention that is asked for or that the videos were made with; None: not chosen yet."""
    recorded = next((one["backend"] for one in made.values()), None)
    if asked.backend is not None and recorded not in (None, asked.backend):
        raise ValueError(
            f"the videos in {asked.out} were made with --dense-backend {recorded}, not {asked.backend}; take another "
            "--out"
        )
    return asked.backend or recorded
