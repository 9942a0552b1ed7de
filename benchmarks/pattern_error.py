"""Output error against dense attention on a `shapes` model's real queries, keys and values, at equal density.

    python benchmarks/pattern_error.py --frames 33 129

The published mask has no density to set: its decay is varied, and the other patterns are asked for the density that it
turns out to have. Error: ||sparse - dense|| / ||dense|| over all tokens of a layer, mean over layers, steps, prompts.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import torch
from subject import add_model, grid_of, results_of, size_of

from vidsparse import Pattern, Radial, RadialRaster, SlidingTile, VideoGrid, sparse_attention
from vidsparse.atomic import replacing
from vidsparse.runtime.registry import adapter_for
from vidsparse.shapes import model
from vidsparse.shapes.scene import held_out_scenes


class Recorder:
    """A layer, and each call of it: keeps query, key and value at the wanted calls; what runs is dense."""

    reason = None

    def __init__(self, kept: list[tuple[torch.Tensor, ...]], calls: set[int]):
        self.kept, self.calls, self.count = kept, calls, 0

    def begin(self, unsupported: str | None = None) -> Recorder:
        return self

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        if self.count in self.calls:
            self.kept.append(tuple(x.clone() for x in (query, key, value)))
        self.count += 1
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    def end(self, call: Recorder, out: torch.Tensor) -> torch.Tensor:
        return out


def record(name: str, frames: int, prompts: int, steps: int, at: set[int]) -> list[tuple[torch.Tensor, ...]]:
    """Query, key and value of every layer of a model at the denoising steps `at`, for some held-out prompts."""
    pipe = model.load_pipeline(model=name)
    pipe.set_progress_bar_config(disable=True)
    adapter, kept = adapter_for(pipe.transformer), []
    scenes = held_out_scenes()[:: max(1, 64 // prompts)][:prompts]
    recorders = []
    for attention in adapter.self_attentions(pipe.transformer).values():
        recorders.append(Recorder(kept, at))
        attention.set_processor(adapter.processor(attention.processor, recorders[-1]))
    for number, scene in enumerate(scenes):
        for recorder in recorders:
            recorder.count = 0
        pipe(
            scene.caption,
            **size_of(name),
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=model.MAX_WORDS,
            generator=torch.Generator().manual_seed(number),
            output_type="latent",
        )
    return kept


def error(pattern: Pattern, grid: VideoGrid, recorded: list[tuple[torch.Tensor, ...]]) -> tuple[float, float]:
    """(density, mean relative error)."""
    block_map = pattern.plan(grid)
    errors = []
    for query, key, value in recorded:
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        dense = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
        sparse = sparse_attention(query, key, value, block_map)
        errors.append(((sparse - dense).norm() / dense.norm()).item())
    return block_map.density, sum(errors) / len(errors)


def contenders(grid: VideoGrid) -> dict[str, dict[float, Pattern]]:
    """Name -> density of the published mask -> pattern."""
    found: dict[str, dict[float, Pattern]] = defaultdict(dict)
    for adjacent, decay in (("half", 0.1), ("full", 0.1), ("full", 1.0), ("full", 2.0), ("full", 4.0)):
        raster = RadialRaster(decay=decay, adjacent=adjacent)  # type: ignore[arg-type]
        density = round(raster.plan(grid).density, 4)
        found["RadialRaster (published)"][density] = raster
        found["Radial"][density] = Radial(density=density)
        found["Radial, cubes (4, 4, 4)"][density] = Radial(density=density, tile=(4, 4, 4))
        windows = [
            SlidingTile(window=(t, s, s), tile=(4, 4, 4)) for t in range(4, grid.frames + 4, 4) for s in (4, 8, 12, 16)
        ]
        found["SlidingTile"][density] = min(windows, key=lambda w: abs(w.plan(grid).density - density))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 129])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--at", type=int, nargs="+", default=[4, 14, 26])
    add_model(parser)
    arguments = parser.parse_args()
    rows = []
    for frames in arguments.frames:
        grid = grid_of(arguments.model, frames)
        with torch.no_grad():
            recorded = record(arguments.model, frames, arguments.prompts, arguments.steps, set(arguments.at))
            for name, patterns in contenders(grid).items():
                for asked, pattern in patterns.items():
                    density, relative = error(pattern, grid, recorded)
                    row = {"frames": frames, "pattern": name, "asked": asked, "density": density, "error": relative}
                    rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                    print(json.dumps(rows[-1]), flush=True)
    settings = vars(arguments)
    with replacing(results_of(arguments.model) / "pattern_error.json") as temporary:
        temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
