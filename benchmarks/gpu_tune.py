"""The fastest launch of each kernel on this GPU, for bfloat16, among those that the cycle model ranks first.

    python benchmarks/gpu_tune.py --seconds 140 --out tune.json

Compiles with many processes first, then checks and times one candidate after the other, the table's own row before the
others of its kind, and saves as it goes. `gpu.py --launches tune.json` runs with what it found. Needs torch and triton
alone: PYTHONPATH=.:kernels suffices. (`vidsparse bench --tune` tries every launch of one problem, one after the other.)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from on_gpu import machine, tuning
from on_gpu.candidates import CANDIDATES
from on_gpu.saved import Results


def run(search: tuning.Search, out: Path) -> Results:
    """Compile, time, and name the winners, saved in `out` as it goes."""
    results = Results(out, machine=machine.versions(search.device), winners=[])
    with machine.clocks(out.with_name("clocks.csv")) as clocks:
        if search.workers:
            tuning.compile_all(search)
            print(f"{len(search.candidates)} candidates compiled at {results.seconds:.0f} s", flush=True)
        best = tuning.fastest(search, tuning.time_all(search, results))
        results.add("together", lambda: tuning.beside_table(search, best))
    results.save(clocks=clocks)
    print("winners:", *results["winners"], sep="\n")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=140, help="after which no candidate is started")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tune.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: benchmarks/model.py ranks launches without one")
    device = torch.device("cuda")
    candidates = tuple(tuning.with_table(CANDIDATES, device))
    run(tuning.Search(device, candidates, arguments.seconds, heads=arguments.heads), arguments.out)


if __name__ == "__main__":
    main()
