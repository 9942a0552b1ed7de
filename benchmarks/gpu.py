"""The Triton kernels on this GPU: first whether they are right, then how fast, against the best dense attention.

    python benchmarks/gpu.py            # everything, some minutes; results/gpu_<name>.json and .md
    python benchmarks/gpu.py --quick    # correctness, and one problem

R = seconds of sparse / (seconds of the fastest dense * density), forward and backward each against its own. What gave
wrong numbers gets no time. Needs torch and triton alone: PYTHONPATH=.:kernels suffices. GPU.md is the plan for a GPU
that is there for a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from on_gpu import inside, launches, machine, plan, selection, small, speed
from on_gpu.saved import Results

from vidsparse.atomic import replacing


def run(planned: plan.Plan, out: Path) -> Results:
    """Everything of a plan, saved in `out` as it goes: gpu_<name>.json, .md, and the clocks."""
    torch.manual_seed(0)
    stem = out / f"gpu_{machine.name(planned.device).replace(' ', '_').lower()}"
    results = Results(stem.with_suffix(".json"), launches=[str(launch) for launch in planned.launches])
    with machine.clocks(out / "clocks.csv") as clocks, launches.together(planned.launches, planned.device):
        results.add("machine", partial(machine.versions, planned.device))
        results.add("ceilings", partial(machine.ceilings, planned.device, planned.product, planned.copied))
        errors = check(planned, results)
        rows: list[speed.Measurement] = []
        for problem in planned.problems:
            wrong = wrong_tiles(errors, problem.head_dim)
            for row in speed.measure(planned, problem, wrong):
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
                results.save(rows=[asdict(row) for row in rows])
                write_table(stem.with_suffix(".md"), results, rows)
            for volume in planned.tiles:
                call, what = (planned, problem, volume), f"{problem}, tiles of {volume}"
                results.add(f"milliseconds by kernel: {what}", partial(inside.split, *call))
                results.add(f"host: {what}", partial(inside.host, *call))
                results.add(f"graph: {what}", partial(inside.replay, *call))
            results.add(f"selection: {problem}", partial(selection.share, planned, problem))
    results.save(clocks=clocks)
    return results


def check(planned: plan.Plan, results: Results) -> dict[plan.Case, float]:
    """Every small case: error / allowed error; above 1 is wrong."""
    found: dict[plan.Case, float] = {}
    for case, share, part in small.results(planned):
        found[case] = share
        if share > 1:
            print(f"WRONG {case}: {share:.2f} of the allowed error ({part})", flush=True)
            results.setdefault("wrong", {})[str(case)] = part
        results.save(errors={str(case): round(share, 4) for case, share in found.items()})
    right = sum(share <= 1 for share in found.values())
    print(f"{right} of {len(found)} configurations are right at {results.seconds:.0f} s", flush=True)
    return found


def wrong_tiles(errors: dict[plan.Case, float], head_dim: int) -> set[int]:
    """Tiles that some small call in bfloat16 with this head_dim had wrong."""
    alike = {c: e for c, e in errors.items() if (c.head_dim, c.dtype) == (head_dim, torch.bfloat16)}
    return {case.rows for case, share in alike.items() if share > 1 and case.rows == case.columns}


def write_table(path: Path, results: Results, rows: list[speed.Measurement]) -> None:
    """The measurements in Markdown, under what they were made on."""
    found: dict[str, Any] = results["machine"]
    title = (
        f"# {found.get('device')}, torch {found.get('torch')}, triton {found.get('triton')}, cuDNN {found.get('cudnn')}"
    )
    with replacing(path) as temporary:
        temporary.write_text(f"{title}\n\n{json.dumps(results['ceilings'])}\n\n{speed.table(rows)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="correctness, and 75k tokens with 3 heads alone")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out, which takes long to compile")
    parser.add_argument("--launches", type=Path, help="of gpu_tune.py: take its winners in place of the table's rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: benchmarks/aot.py, benchmarks/model.py and the tests are what can be had without one")
    device, winners = torch.device("cuda"), launches.winners(arguments.launches)
    full = not arguments.quick
    run(plan.full(device, not arguments.no_flex, winners) if full else plan.quick(device, winners), arguments.out)


if __name__ == "__main__":
    main()
