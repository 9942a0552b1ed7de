"""What a video of `shapes` longer than in its training costs: one pass of each expert, dense and with the preset.

Seconds are CPU time of one pass without guidance, which other work on the machine affects less than a clock. The
denoising of a video is computed from them: the steps of each expert, once with and once without the prompt.

python benchmarks/shapes_longer.py --frames 65 129
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from flow_loss import expert
from subject import grid_of, results_of, sampling_of

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.finetune.noise import generation_levels
from vidsparse.generation.allocator import keep_freed_memory
from vidsparse.generation.models import DEFAULT
from vidsparse.shapes.model import load_pipeline

LEVELS = {"transformer": 0.9, "transformer_2": 0.5}  # a level of noise of each expert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[65, 129])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    pipe, path = load_pipeline(torch.float32), results_of(DEFAULT) / "longer.json"
    steps = sampling_of(DEFAULT)["num_inference_steps"]
    levels = generation_levels(pipe.scheduler, steps)
    early = sum(expert(pipe, level) is pipe.transformer for level in levels)
    known = json.loads(path.read_text()) if path.is_file() else {}
    for frames in arguments.frames:
        grid = grid_of(DEFAULT, frames)  # of the second expert, whose tokens are single latents
        seconds = {
            f"{name} {kind}": pass_seconds(pipe, level, grid, pattern)
            for name, level in LEVELS.items()
            for kind, pattern in (("clips", vidsparse.preset(DEFAULT).pattern), ("dense", vidsparse.Dense()))
        }
        whole = {
            kind: 2 * (early * seconds[f"transformer {kind}"] + (steps - early) * seconds[f"transformer_2 {kind}"])
            for kind in ("clips", "dense")
        }
        known[str(frames)] = {
            "steps": [early, steps - early],
            "grid": grid.sides,
            "pass": {name: round(value, 2) for name, value in seconds.items()},
            "denoising": {name: round(value, 1) for name, value in whole.items()},
            "faster": round(whole["dense"] / whole["clips"], 2),
            "torch": torch.__version__,
        }
        print(frames, json.dumps(known[str(frames)], indent=1), flush=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n")


@torch.no_grad()
def pass_seconds(pipe: Any, level: float, grid: vidsparse.VideoGrid, pattern: vidsparse.Pattern) -> float:
    """CPU seconds of one pass of the expert for a level of noise, after a short one that loads what is needed."""
    transformer = expert(pipe, level)
    text = torch.zeros(1, 16, transformer.config.text_dim)
    channels = transformer.config.in_channels
    arguments = {"timestep": torch.tensor([level * 1000]), "encoder_hidden_states": text}
    with vidsparse.sparsify(pipe, pattern):
        transformer(hidden_states=torch.randn(1, channels, 2, 8, 8), **arguments)
        latents = torch.randn(1, channels, *grid.view, generator=torch.Generator().manual_seed(0))
        started = time.process_time()
        transformer(hidden_states=latents, **arguments)
        return time.process_time() - started


if __name__ == "__main__":
    main()
