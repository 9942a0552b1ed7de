"""Every family at the size of video that its pipeline makes by default: a twin's layers and width, the whole grid.

A pattern that keeps all tiles against the model itself in bfloat16 (relative difference of the outputs), and radial
attention at density 0.2: what ran. On two CPU cores some minutes.

    python benchmarks/default_sizes.py          # all families; writes results/default_sizes.json
    python benchmarks/default_sizes.py --only WanTransformer3DModel --out one.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import diffusers
import torch

from vidsparse import Radial, sparsify
from vidsparse.atomic import replacing
from vidsparse.doctor import Twin
from vidsparse.doctor.under_mask import KEEPS_ALL

# Tokens (latent frames, height, width) of a video of the pipeline's default size.
GRIDS = {
    "AllegroTransformer3DModel": (22, 45, 80),  # 88 frames, 720x1280
    "AnyFlowFARTransformer3DModel": (3, 30, 52),  # a chunk of 81 frames, 480x832
    "CogVideoXTransformer3DModel": (13, 30, 45),  # 49 frames, 480x720
    "ConsisIDTransformer3DModel": (13, 30, 45),
    "Cosmos3OmniTransformer": (24, 44, 80),  # 93 frames, 704x1280
    "CosmosTransformer3DModel": (16, 44, 80),  # 121 frames, 704x1280
    "HeliosTransformer3DModel": (9, 24, 40),  # a chunk of 132 frames, 384x640
    "HunyuanVideo15Transformer3DModel": (31, 30, 53),  # 121 frames, 480x848
    "HunyuanVideoFramepackTransformer3DModel": (9, 40, 40),  # 33 frames, 640x640
    "HunyuanVideoTransformer3DModel": (33, 45, 80),  # 129 frames, 720x1280
    "Kandinsky5Transformer3DModel": (31, 32, 48),  # 121 frames, 512x768
    "LTX2VideoTransformer3DModel": (16, 16, 24),  # 121 frames, 512x768
    "LTXVideoTransformer3DModel": (21, 16, 22),  # 161 frames, 512x704
    "MiniMaxH3Transformer3DModel": (16, 24, 42),  # 5 s, 768x1344
    "MochiTransformer3DModel": (4, 30, 53),  # 19 frames, 480x848
    "SkyReelsV2Transformer3DModel": (25, 34, 60),  # 97 frames, 544x960
    "WanTransformer3DModel": (21, 30, 52),  # 81 frames, 480x832
    "WanVACETransformer3DModel": (21, 30, 52),
}
MOST = 52_000  # tokens: dense attention of more takes a CPU minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=GRIDS, metavar="CLASS", help="classes of transformers; default all"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "default_sizes.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # what models warn of on a CPU
    rows = []
    for name, view in ((name, GRIDS[name]) for name in arguments.only or GRIDS):
        if view[0] * view[1] * view[2] > MOST or not hasattr(diffusers, name):
            print(f"{name}: left out, {view}")
            continue
        started, dtype = time.perf_counter(), torch.bfloat16
        twin = Twin(getattr(diffusers, name))
        model = twin.build(dtype)
        plain = twin.outputs(model, view, dtype=dtype)
        with sparsify(model, KEEPS_ALL, strict=True):
            found = twin.outputs(model, view, dtype=dtype)
        with sparsify(model, Radial(density=0.2), strict=True) as run:
            sparse = twin.outputs(model, view, dtype=dtype)
        report = run.report()
        row = {
            "class": name,
            "grid": view,
            "tokens": report.calls[0].tokens,
            "difference": max(relative(found[key], plain[key]) for key in plain),
            "density": report.density,
            "finite": all(bool(x.isfinite().all()) for x in sparse.values()),
            "ran": report.ran,
            "seconds": round(time.perf_counter() - started, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {"torch": torch.__version__, "diffusers": diffusers.__version__, "rows": rows}
    with replacing(arguments.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


if __name__ == "__main__":
    main()
