"""Carries a transformer's weights from one size of tokens to another: coarse tokens first, fine ones at the end."""

from __future__ import annotations

import torch


def widen_positions(rope: torch.nn.Module, patch: int) -> None:
    """Give each token of a coarse model the position of its patch's centre in the fine model's grid."""
    angle = torch.atan2(rope.freqs_sin[1].double(), rope.freqs_cos[1].double())  # of one step, before it is changed
    time, height, width = angle.split([rope.t_dim, rope.h_dim, rope.w_dim])
    place = torch.arange(len(rope.freqs_cos), dtype=torch.float64)[:, None]
    centre = patch * place + (patch - 1) / 2
    table = torch.cat((place * time, centre * height, centre * width), dim=1)
    rope.freqs_cos.copy_(table.cos())
    rope.freqs_sin.copy_(table.sin())


def refine(state: dict[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """Start a model of half the patch size from a coarser one: each token stands for a quarter of what it stood for."""
    half = patch // 2
    fine = dict(state)
    kernel = state["patch_embedding.weight"].unflatten(-1, (2, half)).unflatten(-3, (2, half))
    fine["patch_embedding.weight"] = kernel.sum(dim=(-4, -2))
    for name in ("proj_out.weight", "proj_out.bias"):
        # The head writes [row of the patch, column of the patch, channel].
        head = state[name].unflatten(0, (2, half, 2, half, -1))
        fine[name] = head.mean(dim=(0, 2)).flatten(0, 2)
    return fine


def coarsen(state: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Start a model of coarse tokens from one whose tokens are single latents: a token sees their mean.

    What differs within a coarse token the fine model knows nothing of. There embedding and head begin as in `fresh`,
    the state of a new model of coarse tokens: if both began at zero, neither would ever get a gradient.
    """
    coarse = dict(state)
    new = fresh["patch_embedding.weight"]
    coarse["patch_embedding.weight"] = (
        new - new.mean(dim=(-1, -2), keepdim=True) + (state["patch_embedding.weight"] / (new.shape[-1] * new.shape[-2]))
    )
    for name in ("proj_out.weight", "proj_out.bias"):
        # The head writes [row and column of the patch, channel].
        new = fresh[name].unflatten(0, (-1, len(state[name])))
        coarse[name] = (new - new.mean(dim=0) + state[name]).flatten(0, 1)
    return coarse
