"""`vidsparse bench`: how fast attention is on this machine under a pattern; `--tune`: which launch is the fastest."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidsparse.cli.inspect import MODEL_HELP, token_grid
from vidsparse.cli.messages import counted, live_console, task_bar
from vidsparse.cli.options import DTYPE_HELP, FRAMES, read_dtype
from vidsparse.cli.patterns import DENSITY_HELP, PATTERN_HELP, SET_HELP

if TYPE_CHECKING:
    import torch

    from vidsparse import BlockMap


def bench(
    model: Annotated[str, Option("--model", "--model-family", help=MODEL_HELP)] = "wan",
    frames: Annotated[int, Option(*FRAMES, min=1, help="Of the video.")] = 33,
    height: Annotated[int, Option(min=1, help="Pixels.")] = 480,
    width: Annotated[int, Option(min=1, help="Pixels.")] = 832,
    pattern: Annotated[str, Option(help=PATTERN_HELP)] = "radial",
    density: Annotated[float | None, Option(help=DENSITY_HELP, show_default="of the pattern")] = None,
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP)] = None,
    heads: Annotated[int, Option(min=1, help="Of the attention; seconds grow with it.")] = 2,
    head_dim: Annotated[int | None, Option(min=1, show_default="of the model")] = None,
    dtype: Annotated[str, Option(help=DTYPE_HELP, callback=read_dtype)] = "bfloat16",
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...", show_default="cuda if there is one")] = None,
    impl: Annotated[str, Option(help="auto, triton, cudnn, fa4, cpu, flex or reference.")] = "auto",
    tune: Annotated[bool, Option("--tune", help="Try all launches of the Triton kernels; needs a GPU.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time one attention layer, dense and sparse."""
    import torch

    from vidsparse import Context, bench, head_groups
    from vidsparse.attention import check_impl
    from vidsparse.generation.allocator import keep_freed_memory
    from vidsparse.generation.frames import check_map, geometry
    from vidsparse.generation.pipeline import check_device
    from vidsparse.patterns.names import build_pattern

    chosen = build_pattern(pattern, density, settings)
    on = torch.device(check_device(device))
    check_impl(impl, on)
    if on.type == "cpu":
        keep_freed_memory()
    if tune and on.type != "cuda":
        raise ValueError(f"--tune times launches on a GPU, but the device is {on}")
    known = geometry(model)
    grid = token_grid(known, frames, height, width)
    check_map(grid, chosen)
    groups = head_groups(chosen.plan(grid, Context(heads=heads)), heads)
    if len(groups) > 1:
        raise ValueError(f"{chosen!r} has tiles of several shapes; bench times one map")
    block_map = groups[0].block_map
    tensors = bench.inputs(grid.tokens, heads, head_dim or known.head_dim, getattr(torch, dtype), on)
    if tune:
        return _tune(tensors, block_map)
    with task_bar("calls") as bar:
        timing = bench.time_attention(tensors, block_map, impl, bar)
    result = asdict(timing) | {"speedup": timing.speedup, "R": timing.ratio, "tokens": grid.tokens}
    if as_json:
        print(json.dumps(result))
        return
    print(f"{chosen!r}, {grid.tokens:,} tokens, {counted(heads, 'head')} of {tensors[0].shape[3]}, {dtype} on {on}")
    print(f"dense   {timing.dense_seconds:.4g} s ({timing.dense}, the fastest here)")
    print(f"sparse  {timing.sparse_seconds:.4g} s (impl {timing.impl}, {timing.density:.3f} of all pairs of tokens)")
    print(f"speedup {timing.speedup:.2f}x; R = {timing.ratio:.2f} (1: sparsity becomes time without loss)")


def _tune(tensors: list[torch.Tensor], block_map: BlockMap) -> None:
    """Print the fastest launch of each kernel, as a row of `vidsparse_kernels.gpu.configs.TABLE`."""
    from vidsparse import bench

    for kernel in ("forward", "query_gradient", "key_gradient"):
        tile = block_map.key_tile if kernel == "key_gradient" else block_map.query_tile
        with live_console().status(f"trying launches of {kernel}"):
            times = sorted(bench.tune(tensors, block_map, kernel), key=lambda found: found[1])
        for config, seconds in times[:3]:
            print(f"# {config}: {seconds * 1000:.3f} ms")
        print(f"{bench.row(kernel, tensors[0], tile)}: {times[0][0] if times else None}", flush=True)
