"""Makes the videos of a study that are missing, compares them, and summarises all."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.atomic import leftovers
from vidsparse.cli.dry_run import header
from vidsparse.cli.files import write_json
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import live_console, note, say
from vidsparse.cli.pareto import draw_pareto
from vidsparse.cli.request import Request
from vidsparse.cli.study_page import study_page
from vidsparse.cli.study_table import print_tables
from vidsparse.cli.versions import machine
from vidsparse.cli.video import sample_video, write_with_report
from vidsparse.generation.study import DENSE
from vidsparse.webpage.render import write_page

if TYPE_CHECKING:
    from vidsparse.generation.batch import Folder

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
        report: the page that is written when all is done; None: none.
    """

    prompts: Path
    out: Path
    settings: Path | None
    sweeps: list[str]
    seeds: int
    rivals: bool
    lpips: bool
    backend: str | None
    report: Path | None = None


class StudyRun:
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
        self.corrections = dict[str, Any]()  # of each setting, once the model is loaded

    def forget_incomplete(self) -> None:
        """Make dense videos again whose frames are gone, where a setting is still to be compared with them."""
        for name in self.requests[DENSE]:
            missing = any((s, name) not in self.made for s, of_setting in self.requests.items() if name in of_setting)
            if missing and (DENSE, name) in self.made and not self._frames(name).is_file():
                del self.made[DENSE, name]
                self.folders[DENSE].report(name).unlink()

    def make_all(self) -> None:
        """Make every video that is missing, each dense one before those under the settings."""
        from vidsparse.generation.backends import dense_backend, fastest_backend
        from vidsparse.generation.metrics import Lpips

        leaders = {setting: next(iter(of_setting.values())) for setting, of_setting in self.requests.items()}
        for setting, one in leaders.items():
            say(f"{setting}: {header(one, one.build_pattern(), one.build_arguments())}")
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
        strip = folder.video(name).with_suffix(".png")
        for leftover in (*leftovers(strip), *leftovers(self._frames(name))):
            leftover.unlink(missing_ok=True)
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
        written = [summary, *([picture] if draw_pareto(picture, rows, self.rivals) else [])]
        if told and self.asked.report is not None:
            with live_console().status("writing the page"):
                write_page(self.asked.report, study_page(self, rows, data))
            written.append(self.asked.report)
        if told:
            print_tables(rows, self.asked.out, self.backend or "", self.failures)
            print("wrote", ", ".join(map(str, written)))
