"""What corrections add: output error against dense attention, with and without each, at several densities.

    python benchmarks/corrections.py    # queries, keys and values of a model that ships, and synthetic ones

Error: ||output - dense|| / ||dense|| over all tokens of a layer; the table has the mean over layers, steps and prompts,
and the worst layer's error as a multiple of its error without correction: above 1, the correction hurts there.
Cost: density, and what the correction computes, as a share of dense attention's products. For `Reshaped` that is the
dense step in five which it needs: it is measured `--lag` steps after one, with the map of that step.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import LAYERS
from recorded import Moment, record
from subject import add_model, grid_of, results_of, sampling_of

from vidsparse import (
    BlockMap,
    Context,
    Correction,
    Gridded,
    MixtureOfBlocks,
    Pattern,
    PooledComplement,
    PowerOfTwo,
    ProxyTokens,
    Radial,
    Rectified,
    Reshaped,
    SparseCall,
    SpatialTemporal,
    TopBlocks,
    VideoGrid,
    head_groups,
    sparse_attention,
)
from vidsparse.atomic import replacing

SYNTHETIC = VideoGrid(9, 16, 16)
CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "PooledComplement()": PooledComplement(),
    "PooledComplement(gate=False)": PooledComplement(gate=False),
    "PooledComplement(variance=True)": PooledComplement(variance=True),
    "PooledComplement(box=16)": PooledComplement(box=16),
    "PooledComplement(gate=False, box=16)": PooledComplement(gate=False, box=16),
    "Rectified()": Rectified(),
    "Reshaped('none')": Reshaped("none"),
    "Reshaped('tile')": Reshaped("tile"),
    "Reshaped('full')": Reshaped("full"),
    "Reshaped('full', drift=0)": Reshaped("full", drift=0.0),
}


def synthetic(grid: VideoGrid, layers: int, heads: int = 3, head_dim: int = 64) -> list[Moment]:
    """Attention that decays with distance in time and space, faster in later layers, with noise on every token.

    Random Fourier features of the place make q . k a function of the distance. The earlier step has other noise.
    """
    generator = torch.Generator().manual_seed(0)
    places = torch.cartesian_prod(*(torch.arange(n).float() for n in grid.view))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def features(reach: float) -> torch.Tensor:
        waves = places @ (normal(heads, 3, head_dim // 2) / reach)
        return torch.cat((waves.cos(), waves.sin()), dim=-1).transpose(0, 1)[None] * math.sqrt(2 / head_dim)

    def step(place: torch.Tensor, content: torch.Tensor, lasting: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        noise = [x + 0.1 * normal(*x.shape) for x in lasting]
        # A token's product with itself is 6 after the scaling by 1/sqrt(head_dim), without the noise.
        strength = math.sqrt(6 * math.sqrt(head_dim))
        return strength * place + noise[0], strength * place + noise[1], 4 * content + noise[2]

    found = []
    for layer in range(layers):
        lasting = [0.5 * normal(1, grid.tokens, heads, head_dim) for _ in range(3)]
        parts = features(8 / 2**layer), features(3.0), lasting
        found.append(Moment(layer, step(*parts), step(*parts)))
    return found


def contenders(densities: list[float]) -> dict[str, list[Pattern]]:
    """Name -> patterns from sparse to dense."""
    return {
        "Radial": [Radial(density=d) for d in densities],
        "Radial, tile (4, 4, 4)": [Radial(density=d, tile=(4, 4, 4)) for d in densities],
        "TopBlocks": [TopBlocks(density=d) for d in densities],
        "SpatialTemporal": [SpatialTemporal(density=d) for d in densities],
        "PowerOfTwo": [PowerOfTwo(axes=1, window=(1, 1, 1)), PowerOfTwo()],
        "MixtureOfBlocks": [MixtureOfBlocks.training_free((k, 4 * k, 4 * k)) for k in (1, 2)],
        "Gridded": [Gridded((1, 8, 8), None, 1, sink) for sink in (0, 1)],
    }


def extra_cost(correction: Correction | None, block_map: BlockMap) -> float:
    """Products that the correction computes, as a share of dense attention's two of tokens x tokens."""
    grid = block_map.grid
    if isinstance(correction, (PooledComplement, ProxyTokens)):
        share = math.prod(grid.tiles(correction.pool_tile(block_map.key_tile))) / grid.tokens
        if isinstance(correction, ProxyTokens):
            return share
        return share * (1 + 0.5 * correction.gate + 0.5 * correction.variance)
    if isinstance(correction, Reshaped):
        return (1 - block_map.density) / correction.refresh_every
    return 0.0


def outputs(
    pattern: Pattern, grid: VideoGrid, moment: Moment, layers: int, lag: int
) -> dict[str, tuple[float, float, float]]:
    """Correction -> density, cost and relative error at the later of the two steps."""
    dense, _ = exact(*moment.now)
    heads = dense.shape[2]
    context = Context(layer=moment.layer, layers=layers, heads=heads)
    # What remembers keeps the tiles of the earlier step; what does not chooses them anew.
    held, fresh = (
        head_groups(pattern.select(query, key, grid, replace(context, value=value)), heads)
        for query, key, value in (moment.before, moment.now)
    )
    found = {}
    for name, correction in CORRECTIONS.items():
        total, density, cost = torch.zeros_like(dense), 0.0, 0.0
        remembers = name.startswith("Reshaped")
        for group in held if remembers else fresh:
            block_map, picked = group.block_map, list(group.heads)
            here = replace(context, heads=len(picked), memory={})
            for step, tensors in ((0, moment.before), (lag, moment.now))[0 if remembers else 1 :]:
                qkv = [x[:, :, picked] for x in tensors]
                out, lse = sparse_attention(*qkv, block_map, return_lse=True)
                call = SparseCall(*qkv, out, lse, block_map, replace(here, step=step), partial(exact, *qkv))
                total[:, :, picked] = out if correction is None else correction.correct(call)
            share = len(picked) / heads
            density += share * block_map.density
            cost += share * (block_map.density + extra_cost(correction, block_map))
        found[name] = density, cost, ((total - dense).norm() / dense.norm()).item()
    return found


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * query.shape[-1] ** -0.5
    lse = logits.logsumexp(dim=-1)
    return (logits.softmax(dim=-1) @ value.transpose(1, 2)).transpose(1, 2), lse


def summary(source: str, name: str, measured: list[dict[str, tuple[float, float, float]]]) -> list[dict[str, Any]]:
    """One row for each correction."""
    rows = []
    density = sum(m["none"][0] for m in measured) / len(measured)
    for correction in CORRECTIONS:
        _, cost, errors = zip(*(m[correction] for m in measured), strict=True)
        ratio = [e / m["none"][2] for e, m in zip(errors, measured, strict=True)]
        row = {
            "source": source,
            "pattern": name,
            "density": density,
            "correction": correction,
            "cost": sum(cost) / len(cost),
            "error": sum(errors) / len(errors),
            "worst": max(ratio),
        }
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each pattern and density, a column for each correction: error (worst ratio)."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        lines += [f"\n## {source}\n", f"| pattern | density | {' | '.join(f'`{c}`' for c in CORRECTIONS)} |"]
        lines.append("|---|---:|" + "---:|" * len(CORRECTIONS))
        grouped: dict[tuple[str, float], dict[str, str]] = defaultdict(dict)
        for row in (row for row in rows if row["source"] == source):
            cell = f"{row['error']:.3f}" if row["correction"] == "none" else f"{row['error']:.3f} ({row['worst']:.2f})"
            grouped[row["pattern"], row["density"]][row["correction"]] = cell
        for (pattern, density), cells in grouped.items():
            lines.append(f"| {pattern} | {density:.3f} | {' | '.join(cells[c] for c in CORRECTIONS)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    sources, patterns = (list(dict.fromkeys(row[key] for row in rows)) for key in ("source", "pattern"))
    figure = Figure(figsize=(3.4 * len(patterns), 3.4 * len(sources) + 0.8), layout="constrained")
    axes = figure.subplots(len(sources), len(patterns), sharex=True, sharey="row", squeeze=False)
    for source, line in zip(sources, axes, strict=True):
        for pattern, axis in zip(patterns, line, strict=True):
            for number, correction in enumerate(CORRECTIONS):
                points = sorted(
                    (row["cost"], row["error"])
                    for row in rows
                    if (row["source"], row["pattern"], row["correction"]) == (source, pattern, correction)
                )
                style = dict(color="black", linewidth=2) if correction == "none" else dict(color=f"C{number}")
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=correction, **style)
            axis.set(title=f"{pattern}\n{source}", xlabel="cost / dense", yscale="log")
            axis.grid(alpha=0.3)
        line[0].set_ylabel("relative error")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=110)


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Write a file as a whole: a run that is cut short leaves the earlier results."""
    with replacing(path) as temporary:
        make(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--at", type=int, nargs="+", default=[5], help="denoising steps of the expert, from 0")
    parser.add_argument("--lag", type=int, default=2, help="steps since the refresh of Reshaped")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    add_model(parser)
    parser.add_argument("--out", type=Path, help="folder of corrections.json, .md and .png (default: results/MODEL)")
    arguments = parser.parse_args()
    out = arguments.out or results_of(arguments.model)
    out.mkdir(parents=True, exist_ok=True)
    grid, rows = grid_of(arguments.model, sampling_of(arguments.model)["num_frames"]), []
    with torch.no_grad():
        real = record(arguments.model, arguments.prompts, arguments.at, arguments.lag, arguments.layers)
        sources = {arguments.model: real, "synthetic": synthetic(SYNTHETIC, layers=3)}
        for source, moments in sources.items():
            on = grid if source == arguments.model else SYNTHETIC
            for name, patterns in contenders(arguments.densities).items():
                for pattern in dict.fromkeys(patterns):
                    measured = [outputs(pattern, on, moment, LAYERS, arguments.lag) for moment in moments]
                    rows += summary(source, name, measured)
                    errors = {row["correction"]: row["error"] for row in rows[-len(CORRECTIONS) :]}
                    print(source, name, rows[-1]["density"], json.dumps(errors), flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    data = json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n"
    write(out / "corrections.json", lambda path: path.write_text(data))
    head = (
        f"# Corrections: relative error (worst layer's, as a multiple of its error without)\n\n{json.dumps(settings)}\n"
    )
    write(out / "corrections.md", lambda path: path.write_text(head + table(rows) + "\n"))
    write(out / "corrections.png", lambda path: plot(rows, path))


if __name__ == "__main__":
    main()
