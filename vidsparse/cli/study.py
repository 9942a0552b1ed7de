"""`vidsparse compare --prompts`: several settings beside dense attention, over many prompts and seeds, in a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vidsparse.cli.batch import checked_requests, is_made, naming, read_lines, terminated_as_by_ctrl_c
from vidsparse.cli.dry_run import say_header
from vidsparse.cli.files import check_folder, write_json
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import counted, live_console, note
from vidsparse.cli.request import Request
from vidsparse.cli.settings import dense_request, naming_setting, read_settings, rivals
from vidsparse.cli.study_table import print_table
from vidsparse.cli.versions import machine
from vidsparse.cli.video import sample_video, write_with_report
from vidsparse.generation.study import DENSE

if TYPE_CHECKING:
    from vidsparse.generation.batch import Folder
    from vidsparse.generation.prompts import Line

MOST_SEED = 2**63 - 1
Requests = dict[str, dict[str, Request]]  # setting -> name of a video -> its request


@dataclass(frozen=True)
class Asked:
    """What a study is made of, besides the request that all its videos share.

    Attributes:
        prompts: the file of prompts.
        out: the folder.
        settings, sweeps: see `read_settings`.
        seeds: videos of each prompt.
        rivals: also dense videos in fewer steps, and how far apart those of two seeds are.
        lpips: also measure LPIPS.
        backend: of dense attention; None: the fastest.
    """

    prompts: Path
    out: Path
    settings: Path | None
    sweeps: list[str]
    seeds: int
    rivals: bool
    lpips: bool
    backend: str | None


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
    running = _Study(asked, folders, requests, set(others), made, backend)
    with alone_in(asked.out), terminated_as_by_ctrl_c():
        for setting, folder in folders.items():
            folder.start(requests[setting])
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
            leader = common.with_options(prompt=lines[first].prompt, **lines[first].options)
            leader.build_correction()
            leader.check(leader.build_pattern(), leader.build_arguments())
            ours = {
                name: leader.with_options(
                    **{option: getattr(common, option) for option in lines[first].options},
                    **dict(prompt=line.prompt, seed=common.seed) | dict(line.options),
                )
                for name, line in lines.items()
            }
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


class _Study:
    """A study that runs: what is made, and the model once it is loaded."""

    def __init__(
        self,
        asked: Asked,
        folders: dict[str, Folder],
        requests: Requests,
        others: set[str],
        made: dict[tuple[str, str], dict[str, Any]],
        backend: str | None,
    ) -> None:
        self.asked, self.folders, self.requests, self.rivals = asked, folders, requests, others
        self.made, self.backend, self.failures = made, backend, dict[tuple[str, str], str]()
        self.warm = set[str]()

    def make_all(self) -> None:
        """Make every video that is missing, each dense one before those under the settings."""
        from vidsparse.generation.backends import dense_backend, fastest_backend
        from vidsparse.generation.metrics import Lpips

        leaders = {setting: next(iter(of_setting.values())) for setting, of_setting in self.requests.items()}
        for one in leaders.values():
            say_header(one, one.build_pattern(), one.build_arguments())
        dense = leaders[DENSE]
        self.pipe, self.lpips = dense.load_pipe(), Lpips() if self.asked.lpips else None
        self.corrections = {
            setting: one.fitting_correction(self.pipe, one.build_pattern(), one.build_correction())
            for setting, one in leaders.items()
        }
        arguments = fitted(self.pipe, dense.build_arguments())
        if self.backend is None:
            with live_console().status("choosing the fastest dense attention"):
                self.backend, seconds = fastest_backend(self.pipe, arguments | dense.pixels(arguments))
            for name, taken in seconds.items():
                note(f"dense attention of one step on {name}: {taken:.3f} seconds")
        with dense_backend(self.backend):
            for name in self.requests[DENSE]:
                for setting in self.requests:
                    if name in self.requests[setting] and (setting, name) not in self.made:
                        self._make_one(setting, name)
                self.summarise()

    def _make_one(self, setting: str, name: str) -> None:
        """Make a video, unless its dense video could not be made."""
        folder = self.folders[setting]
        if setting != DENSE and (DENSE, name) not in self.made:
            self.failures[setting, name] = f"its dense video {self.folders[DENSE].video(name)} is missing"
            return

        def failed(name: str, error: Exception) -> None:
            from vidsparse.generation.batch import reason_of

            if isinstance(error, OSError):  # of the disk: the next video would meet it too
                raise OSError(f"{folder.video(name)}: {reason_of(error)}; what is made is kept") from error
            self.failures[setting, name] = reason_of(error)
            print(f"failed: {folder.video(name)}: {reason_of(error)}", file=sys.stderr, flush=True)
            if self.pipe._execution_device.type == "cuda":
                import torch

                torch.cuda.synchronize()  # raises what the GPU cannot recover from

        folder.make_all([name], lambda name: self._sample(setting, name), failed)

    def _sample(self, setting: str, name: str) -> None:
        """Sample a video, compare it, and write it, its strip of frames, and its report."""
        from vidsparse.generation.compare import warm_up
        from vidsparse.generation.metrics import difference
        from vidsparse.generation.pipeline import fit_arguments
        from vidsparse.generation.study import essentials, keep_frames, read_frames, round_frames
        from vidsparse.generation.video import write_strip

        one, folder = self.requests[setting][name], self.folders[setting]
        arguments, pattern = fit_arguments(self.pipe, one.build_arguments()), one.build_pattern()
        correction = self.corrections[setting]
        if setting not in self.warm:
            with live_console().status(f"warming up {setting}"):
                pixels = one.pixels(arguments)
                warm_up(self.pipe, pattern, arguments | pixels, correction=correction, impl=one.impl, decode=True)
            self.warm.add(setting)
        done = sample_video(self.pipe, one, pattern, correction, arguments, f"{name}, {setting}")
        done = replace(done, frames=round_frames(done.frames))
        more: dict[str, Any] = {"dense_backend": self.backend, "difference": None, "another_seed": None}
        if setting == DENSE:
            keep_frames(self._frames(name), done.frames)
            before = f"{name.rpartition('-seed')[0]}-seed{one.seed - 1}"  # of the same prompt, if there is one
            if (DENSE, before) in self.made:
                apart = difference(read_frames(self._frames(before)), done.frames, self.lpips)
                more["another_seed"] = asdict(apart)
        else:
            dense = read_frames(self._frames(name))
            apart = difference(dense, done.frames, self.lpips)
            more["difference"] = asdict(apart)
            strip = folder.video(name).with_suffix(".png")
            write_strip(strip, {DENSE: dense, setting: done.frames}, worst=apart.worst_frame)
        write_with_report(done, one, arguments, folder.video(name), folder.report(name), more)
        report = folder.read_report(name)
        if report is not None:
            self.made[setting, name] = essentials(report)
        print(f"wrote {folder.video(name)} in {done.seconds:.1f} seconds", flush=True)

    def _frames(self, name: str) -> Path:
        return self.folders[DENSE].path / f"{name}.npy"

    def summarise(self, told: bool = False) -> None:
        """Write what is known so far, as JSON and as a picture; print it if told to."""
        from vidsparse.cli.pareto import draw_pareto
        from vidsparse.generation.study import summarise, to_data

        names = list(next(iter(self.requests.values())))
        reports = {
            setting: {name: self.made[setting, name] for name in names if (setting, name) in self.made}
            for setting in self.requests
        }
        rows = summarise(reports)
        if not rows:
            return
        leaders = {setting: next(iter(of_setting.values())) for setting, of_setting in self.requests.items()}
        one = leaders[DENSE]
        data = {
            "model": one.model,
            "prompts": str(self.asked.prompts),
            "seeds": self.asked.seeds,
            "steps": one.denoising_steps,
            "dense_backend": self.backend,
            "rows": to_data(rows),
            "patterns": {setting: repr(leader.build_pattern()) for setting, leader in leaders.items()},
            "rivals": sorted(self.rivals),
            "failed": {f"{setting}/{name}": reason for (setting, name), reason in self.failures.items()},
            **machine(*one.place),
        }
        summary, picture = self.asked.out / "summary.json", self.asked.out / "pareto.png"
        write_json(summary, data)
        drawn = draw_pareto(picture, rows, self.rivals)
        if told:
            print_table(rows, self.folders[DENSE].path.parent, self.backend or "", self.failures)
            print("wrote", ", ".join(map(str, (summary, picture) if drawn else (summary,))))
