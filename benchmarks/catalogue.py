"""Patterns and corrections that need no training, on whole videos of a `shapes` model: cost, and distance to dense.

All sample the same prompts and seeds. Where a model has an expert for high noise with fewer tokens, that one is dense
in every row, as it is in `generate`: it computes once for each prompt and seed, and the others take over its outputs.
So density and seconds are of the expert for low noise. Seconds are CPU time, which other work on the machine
affects less. Each video is written as soon as it is known, and the same command goes on from it.

python benchmarks/catalogue.py                        # four prompts, two seeds: two hours of one core
python benchmarks/catalogue.py --prompts 1 --seeds 1 --only Radial profile
python benchmarks/catalogue.py --plot                 # table and plot of what is there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, corrected, patterns
from report import write_report
from subject import add_model, grid_of, prompts_of, results_of, sampling_of

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.generation.allocator import keep_freed_memory
from vidsparse.generation.metrics import difference
from vidsparse.generation.models import find_model, source_of
from vidsparse.generation.sample import sample
from vidsparse.presets import preset

DENSE = "dense"


def contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    """Name and density -> what is sampled, dense first."""
    grid = grid_of(arguments.model, sampling_of(arguments.model)["num_frames"])
    found = {DENSE: Contender(vidsparse.Dense())}
    if arguments.model == "shapes":
        found["profile"] = Contender(preset("shapes").pattern)
        found["profile + PooledComplement"] = Contender(preset("shapes").pattern, vidsparse.PooledComplement())
        small = vidsparse.PooledComplement(gate=False, box=16)
        found["profile + PooledComplement(box=16)"] = Contender(preset("shapes").pattern, small)
    for density in arguments.densities:
        found |= {f"{name}, {density}": Contender(pattern) for name, pattern in patterns(grid, density).items()}
    first = arguments.densities[0]
    found |= {f"{name}, {first}": contender for name, contender in corrected(grid, first).items()}
    return found


@contextmanager
def replayed(pipe: Any, outputs: list[torch.Tensor]) -> Iterator[None]:
    """Let the expert for high noise return these outputs, call by call, or fill the list where it is empty."""
    if getattr(pipe, "transformer_2", None) is None:
        yield
        return
    forward, known, calls = pipe.transformer.forward, bool(outputs), iter(outputs)

    def replay(*given: Any, **named: Any) -> Any:
        if known:
            return (next(calls),)
        out = forward(*given, **named)
        outputs.append(out[0])
        return out

    pipe.transformer.forward = replay
    try:
        yield
    finally:
        del pipe.transformer.forward


class Subject:
    """A model, and how one of its videos is sampled and compared."""

    def __init__(self, arguments: argparse.Namespace):
        keep_freed_memory()
        self.model = find_model(arguments.model)
        self.pipe = self.model.load(getattr(torch, arguments.dtype))
        self.pipe.set_progress_bar_config(disable=True)
        self.sampling = sampling_of(arguments.model)
        self.folder = arguments.cache / f"{Path(arguments.model).name}-{_digest(arguments.model)}-{arguments.dtype}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, prompt: str, seed: int) -> Path:
        """The file of a dense video and of the outputs of the expert for high noise."""
        return self.folder / f"{prompt.replace(' ', '_')}-{seed}.pt"

    def measure(self, contender: Contender, prompt: str, seed: int) -> dict[str, Any]:
        """Sample one video, and say what it took and how near it is to dense."""
        path = self.path(prompt, seed)
        kept: dict[str, Any] = torch.load(path) if path.is_file() else {"outputs": [], "frames": None}
        if kept["frames"] is None and not isinstance(contender.pattern, vidsparse.Dense):
            raise RuntimeError(f"{path} is missing: the dense video comes first")
        clock: list[float] = []
        arguments = self.sampling | {"prompt": prompt}
        coarse = getattr(self.pipe, "transformer_2", None) is not None
        with replayed(self.pipe, kept["outputs"]):
            done = sample(
                self.pipe,
                contender.pattern,
                arguments,
                correction=contender.correction,
                seed=seed,
                on_step=lambda *_: clock.append(time.process_time()),
            )
        fine = self._fine_steps(len(clock) - 1) if coarse else len(clock) - 1
        if kept["frames"] is None:
            with replacing(path) as temporary:
                torch.save(
                    kept | {"frames": torch.as_tensor(done.frames).half(), "coarse": clock[-1 - fine] - clock[0]},
                    temporary,
                )
            kept = torch.load(path)
        dense = kept["frames"].float().numpy()
        apart = difference(dense, done.frames.astype("float16").astype("float32"))
        judged = self.model.judge(done.frames, prompt)
        return {
            "seconds": clock[-1] - clock[-1 - fine],
            "coarse_seconds": kept["coarse"],
            "density": done.report.density,
            "token_density": done.report.token_density,
            "psnr": apart.psnr,
            "ssim": apart.ssim,
            "judge": None if judged is None else judged["mean"],
            "scores": judged,
        }

    def _fine_steps(self, steps: int) -> int:
        """Of the steps of a generation, those of the expert for low noise."""
        boundary = self.pipe.config.boundary_ratio * self.pipe.scheduler.config.num_train_timesteps
        self.pipe.scheduler.set_timesteps(steps)
        return int((self.pipe.scheduler.timesteps < boundary).sum())


def _digest(name: str) -> str:
    """A hash of a model's weights: what is kept of other weights must not be taken for theirs."""
    files = sorted(Path(source_of(name)).rglob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.15, 0.3])
    parser.add_argument("--prompts", type=int, default=4, help="how many of the 64 held-out ones, evenly spaced")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="beginnings of names; all by default")
    parser.add_argument("--cache", type=Path, default=Path("runs/catalogue"), help="folder of dense videos")
    parser.add_argument("--out", type=Path, help="folder of catalogue.json, .md and .png (default: results/MODEL)")
    parser.add_argument("--plot", action="store_true", help="sample nothing")
    arguments = parser.parse_args()
    out = arguments.out or results_of(arguments.model)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "catalogue.json"
    settings = {name: getattr(arguments, name) for name in ("model", "dtype")} | {"weights": _digest(arguments.model)}
    rows: list[dict[str, Any]] = []
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["settings"] != settings:
            raise SystemExit(f"{path} is of {kept['settings']}, asked for is {settings}: remove it, or give --out")
        rows = kept["rows"]
    if not arguments.plot:
        run(arguments, rows, lambda: _write(path, settings, rows))
    if not rows:
        raise SystemExit(f"{path} has no videos yet: leave out --plot")
    write_report(out / "catalogue", rows)


def run(arguments: argparse.Namespace, rows: list[dict[str, Any]], write: Any) -> None:
    """Sample what is missing, one row for each video."""
    subject, chosen = Subject(arguments), contenders(arguments)
    known = {(row["name"], row["prompt"], row["seed"]) for row in rows}
    scenes = prompts_of(arguments.prompts)
    for seed in range(arguments.seeds):
        for scene in scenes:
            for name, contender in chosen.items():
                wanted = name == DENSE or not arguments.only or name.startswith(tuple(arguments.only))
                done = (name, scene.caption, seed) in known
                if not wanted or (done and (name != DENSE or subject.path(scene.caption, seed).is_file())):
                    continue
                found = subject.measure(contender, scene.caption, seed)
                named = {"name": name, "prompt": scene.caption, "seed": seed}
                rows[:] = [row for row in rows if not named.items() <= row.items()]
                rows.append(named | {"pattern": repr(contender.pattern)} | found)
                write()
                print(json.dumps(named | found), flush=True)


def _write(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
