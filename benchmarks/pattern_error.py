"""Output error against dense attention, by density, on a `shapes` model's own queries, keys and values.

    python benchmarks/pattern_error.py

The patterns are those that need no training. Error: ||sparse - dense|| / ||dense|| over all tokens of a layer, mean
over layers, steps and prompts. Where a model has an expert for high noise with fewer tokens, the layers are those of
the other one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from contenders import LAYERS, patterns
from matplotlib.figure import Figure
from recorded import Moment, record
from subject import add_model, grid_of, results_of, sampling_of

from vidsparse import Context, Pattern, Reuse, VideoGrid, head_groups, sparse_attention
from vidsparse.atomic import replacing


def error(pattern: Pattern, grid: VideoGrid, moment: Moment, dense: torch.Tensor) -> tuple[float, float]:
    """Density of token pairs, and relative error."""
    query, key, value = moment.now
    heads = query.shape[2]
    context = Context(layer=moment.layer, layers=LAYERS, heads=heads, value=value)
    density, sparse = 0.0, torch.empty_like(dense)
    for group in head_groups(pattern.select(query, key, grid, context), heads):
        picked = list(group.heads)
        sparse[:, :, picked] = sparse_attention(*(x[:, :, picked] for x in moment.now), group.block_map)
        density += len(picked) / heads * group.block_map.token_density
    return density, ((sparse - dense).norm() / dense.norm()).item()


def first_choice(pattern: Pattern) -> Pattern:
    """What chooses the map of a single call."""
    return pattern.pattern if isinstance(pattern, Reuse) else pattern


def dense_attention(moment: Moment) -> torch.Tensor:
    heads_first = (x.transpose(1, 2) for x in moment.now)
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def plot(rows: list[dict[str, object]], path: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row["pattern"] for row in rows)):
        points = sorted({(row["density"], row["error"]) for row in rows if row["pattern"] == name})
        style = "-" if number < 10 else "--"
        axis.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=f"C{number % 10}", label=name)
    axis.set(xlabel="density of token pairs", ylabel="relative error of the output", xscale="log", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--at", type=int, nargs="+", default=[3], help="denoising steps of the expert, from 0")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
    add_model(parser)
    parser.add_argument("--out", type=Path, help="folder of pattern_error.json and .png (default: results/MODEL)")
    arguments = parser.parse_args()
    grid = grid_of(arguments.model, sampling_of(arguments.model)["num_frames"])
    wanted = {
        (name.removeprefix("Reuse "), repr(first_choice(pattern))): (density, first_choice(pattern))
        for density in arguments.densities
        for name, pattern in patterns(grid, density).items()
    }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in wanted}
    with torch.no_grad():
        moments = record(arguments.model, arguments.prompts, arguments.at, 0, list(range(LAYERS)))
        for number, moment in enumerate(moments, 1):
            dense = dense_attention(moment)
            for key, (_, pattern) in wanted.items():
                found[key].append(error(pattern, grid, moment, dense))
            print(f"{number} of {len(moments)} calls of a layer", flush=True)
    rows: list[dict[str, object]] = []
    for (name, text), measured in found.items():
        density, relative = (sum(column) / len(column) for column in zip(*measured, strict=True))
        rows.append({"pattern": name, "setting": text, "asked": wanted[name, text][0]})
        rows[-1] |= {"density": round(density, 4), "error": round(relative, 4)}
        print(json.dumps(rows[-1]), flush=True)
    out = arguments.out or results_of(arguments.model)
    out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    with replacing(out / "pattern_error.json") as temporary:
        temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    plot(rows, out / "pattern_error.png")


if __name__ == "__main__":
    main()
