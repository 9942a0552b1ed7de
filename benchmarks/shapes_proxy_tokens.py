"""What `ProxyTokens` adds to windows, averaged and learned: error against dense attention, flow loss, and cost.

    python benchmarks/shapes_proxy_tokens.py

Queries, keys and values are those of the expert for high noise, which runs dense, on drawn videos. What is learned is
learned from other videos than those that are measured, layer by layer, by the distance from dense attention: seconds
instead of the hours of a training. Error: ||output - dense|| / ||dense|| over all tokens of a layer, mean over layers,
videos and levels of noise; `worst` is the largest ratio of a layer's mean error to that of the windows alone. Cost:
density, and what the correction computes, as a share of dense attention's products. Loss: flow loss of the expert.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from corrections import extra_cost
from flow_loss import SEED, mean_loss
from subject import add_model, results_of, sampling_of, size_of

import vidsparse
from vidsparse import Correction, Pattern, PooledComplement, ProxyTokens, ShiftedWindows, SparseCall
from vidsparse.atomic import replacing
from vidsparse.corrections.proxy_weights import ProxyWeights
from vidsparse.finetune import Bucket, drawn_clips
from vidsparse.finetune.data.cache import Encoded, encode
from vidsparse.grid import Tile
from vidsparse.runtime.proxies import add_proxies, proxies_in, remove_proxies
from vidsparse.shapes import model

LARGER = "larger windows"


@dataclass(frozen=True, eq=False)
class Recorded(Correction):
    """Runs dense, and keeps what each call of a layer had and should have given."""

    calls: list[tuple[SparseCall, torch.Tensor]] = field(default_factory=list)

    def correct(self, call: SparseCall) -> torch.Tensor:
        dense, _ = call.exact()
        self.calls.append((call, dense))
        return dense


def record(transformer: Any, pattern: Pattern, videos: Encoded, levels: list[float]) -> Recorded:
    """The calls of all layers, one forward pass for each video and level."""
    kept = Recorded()
    with torch.no_grad(), vidsparse.sparsify(transformer, pattern, correction=kept):
        for level in levels:
            mean_loss(transformer, videos, level)
    return kept


def learn(calls: list[tuple[SparseCall, torch.Tensor]], box: Tile, steps: int, rate: float) -> ProxyWeights:
    """Proxies of one layer that bring its output near that of dense attention."""
    weights = ProxyWeights(calls[0][0].query.shape[2], box)
    optimizer = torch.optim.Adam(weights.parameters(), lr=rate)
    for step in range(steps):
        call, dense = calls[step % len(calls)]
        out = ProxyTokens(box, learned=True).correct(replace(call, proxies=weights()))
        loss = (out - dense).square().sum() / dense.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights


def errors(kept: Recorded, correction: Correction | None, weights: dict[int, ProxyWeights]) -> dict[int, float]:
    """The mean error of each layer."""
    found: dict[int, list[float]] = defaultdict(list)
    with torch.no_grad():
        for call, dense in kept.calls:
            layer = call.context.layer
            known = replace(call, proxies=weights[layer]() if weights else None)
            out = call.out if correction is None else correction.correct(known)
            found[layer].append(((out - dense).norm() / dense.norm()).item())
    return {layer: sum(values) / len(values) for layer, values in found.items()}


@contextmanager
def having(transformer: Any, weights: dict[int, ProxyWeights]) -> Iterator[None]:
    """Within the context, the transformer has these proxies."""
    if weights:
        own = add_proxies(transformer, weights[0].box)
        for proxies, (_, learned) in zip(own.values(), sorted(weights.items()), strict=True):
            proxies.load_state_dict(learned.state_dict())
    try:
        yield
    finally:
        if proxies_in(transformer):
            remove_proxies(transformer)


def without(weights: dict[int, ProxyWeights], *names: str) -> dict[int, ProxyWeights]:
    """The same with zeros for some of what was learned."""
    found = {}
    for layer, learned in weights.items():
        state = {name: x * (name not in names) for name, x in learned.state_dict().items()}
        found[layer] = ProxyWeights(len(learned.mass), learned.box)
        found[layer].load_state_dict(state)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--window", type=int, nargs=3, default=[3, 8, 8])
    parser.add_argument("--larger", type=int, nargs=3, default=[5, 8, 8], help="windows of about the cost of proxies")
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 4, 4, 1, 2, 2], help="three sides for each")
    parser.add_argument("--tile", type=int, nargs=3, default=[1, 8, 8])
    parser.add_argument("--radial", type=float, nargs="*", default=[0.21, 0.27], help="densities to compare with")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.97, 0.85], help="of noise")
    parser.add_argument("--videos", type=int, default=4, help="to learn from, and as many others to measure")
    parser.add_argument("--steps", type=int, default=120, help="of each layer")
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--out", type=Path, help="JSON file (default: results/MODEL/shapes_proxy_tokens.json)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    bucket = Bucket(sampling_of(arguments.model)["num_frames"], **size_of(arguments.model))
    pipe = model.load_pipeline(model=arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        seeds = SEED + 1, SEED
        lessons, videos = (
            encode(pipe, drawn_clips(arguments.videos, bucket, seed), Path(folder) / str(seed))[0] for seed in seeds
        )
        measure(arguments, pipe.transformer, lessons, videos)


def measure(arguments: argparse.Namespace, transformer: Any, lessons: Encoded, videos: Encoded) -> None:
    windows, larger = (
        ShiftedWindows(tuple(side), 2, "layers", tile=tuple(arguments.tile))  # type: ignore[arg-type]
        for side in (arguments.window, arguments.larger)
    )
    sides = arguments.boxes
    boxes: list[Any] = [tuple(sides[start : start + 3]) for start in range(0, len(sides), 3)]
    taught = record(transformer, windows, lessons, arguments.levels)
    kept = record(transformer, windows, videos, arguments.levels)
    cases: list[tuple[str, Pattern, Recorded, Correction | None, dict[int, ProxyWeights]]] = [
        ("windows", windows, kept, None, {}),
        (LARGER, larger, record(transformer, larger, videos, arguments.levels), None, {}),
        ("PooledComplement()", windows, kept, PooledComplement(), {}),
    ]
    for density in arguments.radial:
        radial = vidsparse.Radial(density=density, tile=tuple(arguments.tile))  # type: ignore[arg-type]
        near = record(transformer, radial, videos, arguments.levels)
        cases += [(f"Radial {density}", radial, near, None, {})]
        cases += [(f"Radial {density}, proxies {box}, averaged", radial, near, ProxyTokens(box), {}) for box in boxes]
    for box in boxes:
        learned = {
            layer: learn([x for x in taught.calls if x[0].context.layer == layer], box, arguments.steps, arguments.rate)
            for layer in sorted({call.context.layer for call, _ in taught.calls})
        }
        shown, on = f"proxies {box}", ProxyTokens(box, learned=True)
        cases += [
            (f"{shown}, averaged", windows, kept, ProxyTokens(box), {}),
            (f"{shown}, learned mass alone", windows, kept, on, without(learned, "key", "value")),
            (f"{shown}, learned places alone", windows, kept, on, without(learned, "mass")),
            (f"{shown}, learned", windows, kept, on, learned),
        ]
    rows: list[dict[str, Any]] = []
    alone = errors(kept, None, {})
    for name, pattern, calls, correction, weights in cases:
        found = errors(calls, correction, weights)
        maps = [call.block_map for call, _ in calls.calls]
        density = sum(x.token_density for x in maps) / len(maps)
        extra = extra_cost(correction, maps[0])
        with (
            having(transformer, weights),
            vidsparse.sparsify(transformer, pattern, correction=correction),
            torch.no_grad(),
        ):
            losses = {level: mean_loss(transformer, videos, level) for level in arguments.levels}
        rows.append(
            {
                "name": name,
                "density": round(density, 4),
                "cost": round(density + extra, 4),
                "error": round(sum(found.values()) / len(found), 4),
                "worst": round(max(found[layer] / alone[layer] for layer in found), 3),
                "losses": {str(level): round(loss, 4) for level, loss in losses.items()},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    with torch.no_grad():
        losses = {str(level): round(mean_loss(transformer, videos, level), 4) for level in arguments.levels}
    rows.append({"name": "dense", "density": 1.0, "cost": 1.0, "error": 0.0, "worst": 0.0, "losses": losses})
    print(json.dumps(rows[-1]), flush=True)
    names = "model", "window", "larger", "tile", "levels", "videos", "steps", "rate"
    result = {name: getattr(arguments, name) for name in names} | {"torch": torch.__version__, "rows": rows}
    path = arguments.out or results_of(arguments.model) / "shapes_proxy_tokens.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, path.with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    shown = [row for row in rows if row["cost"] < 1 and "alone" not in row["name"]]
    for number, row in enumerate(shown):
        marker = "s" if "learned" in row["name"] else "^" if "Radial" in row["name"] else "o"
        axis.plot(row["cost"], row["error"], marker, color=colormaps["tab20"](number), label=row["name"])
    axis.set(xlabel="cost, share of dense attention's products", ylabel="relative error of the output")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


if __name__ == "__main__":
    main()
