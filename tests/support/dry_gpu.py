"""benchmarks/gpu.py and gpu_tune.py from end to end on a chip that is not there: `python dry_gpu.py FOLDER`.

Launches run in the emulator, clocks stand still, videos are tiny. What the package needs beside torch and triton is not
to be found, as on a machine that has nothing but these.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ABSENT = {
    *("accelerate", "diffusers", "ftfy", "huggingface_hub", "imageio", "matplotlib", "peft", "rich", "safetensors"),
    *("tensorboard", "tokenizers", "torchmetrics", "transformers", "typer"),
}


class Missing(importlib.abc.MetaPathFinder):
    """Finds no package of `ABSENT`."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"no {name} here")


sys.meta_path.insert(0, Missing())
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]

import gpu  # noqa: E402
import gpu_tune  # noqa: E402
import torch  # noqa: E402
from emulator import emulated  # noqa: E402
from on_gpu import inside, plan, tuning  # noqa: E402
from on_gpu.candidates import CANDIDATES  # noqa: E402

from vidsparse import bench  # noqa: E402
from vidsparse.grid import VideoGrid  # noqa: E402

CPU, TINY = torch.device("cpu"), VideoGrid(3, 9, 10)


def once(function: Callable[[], object], device: torch.device, at_least: float = 0.0) -> float:
    """One call, as if it had taken a millisecond."""
    function()
    return 0.001


def main(out: Path) -> None:
    bench.seconds = once
    inside.CALLS, inside.SHORT = 1, TINY
    plan.SMALL.update(ragged=VideoGrid(2, 9, 10, prefix=2, suffix=9), whole=VideoGrid(2, 8, 16))
    cases = (
        plan.Case(128, torch.bfloat16, 128, 128, "ragged"),
        plan.Case(64, torch.float16, 64, 128, "whole"),
    )
    problem = plan.Problem("tiny", TINY, 2, 128)
    with emulated(90) as chip:
        tiles = {128: plan.TILES[128]}
        gpu.run(plan.Plan(CPU, cases, (problem,), tiles, (0.4,), workers=0, product=64, copied=4096), out)
        listed = tuning.with_table(CANDIDATES, CPU)
        candidates = tuple(one for one in listed if (one.head_dim, one.held) == (128, 128))[:3]
        gpu_tune.run(tuning.Search(CPU, candidates, 1e9, TINY, 1, workers=0), out / "tune.json")
        print(f"{len(chip.launches)} launches, {len({launched.kernel for launched in chip.launches})} kernels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
