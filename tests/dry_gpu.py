"""Run benchmarks/gpu.py --quick from end to end without a GPU, on small problems.

    python tests/dry_gpu.py FOLDER

Only torch and triton can be imported, as on a machine that is lent; each kernel is executed by the emulator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from emulator.script import Here, run_script

from vidsparse.grid import VideoGrid

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
GRIDS = {"115k": VideoGrid(4, 16, 16), "75k": VideoGrid(3, 13, 16)}


def once(function: Callable[[], object], *_: object) -> float:
    """In the place of a clock: call, and say a millisecond."""
    function()
    return 0.001


if __name__ == "__main__":
    torch.manual_seed(0)
    chip = run_script(
        SCRIPT,
        ["--quick", "--out", sys.argv[1]],
        90,
        CUDA=torch.device("cpu"),
        GRIDS=GRIDS,
        DENSITIES=(0.3, 1.0),
        HEAD_DIMS=(128,),
        DTYPES=(torch.bfloat16,),
        seconds=once,
        ProcessPoolExecutor=Here,
    )
    print(f"{len(chip.launches)} launches")
