"""Gated coarse attention: the means of tiles attend to each other, weighted by a gate that the model has learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.corrections.base import Correction, SparseCall
from vidsparse_kernels.layout import tile_of_token
from vidsparse_kernels.selection.pooling import tile_means


@dataclass(frozen=True)
class GatedCoarse(Correction):
    """The coarse branch of models trained with Video Sparse Attention (VSA); `VideoSparse` chooses their tiles.

    With means Q, K and V over the tokens of each tile, a token x of tile i gets

        out(x) + gate(x) * sum_j P_ij V_j,    P = softmax(Q K^T / sqrt(head_dim)) over all tiles j, kept or not

    where `gate` is `to_gate_compress` of the layer's hidden states, a number of any sign for each channel. This is not
    an estimate: the branch is a part of the model, added to attention of any density, also of 1. Gradients flow through
    all of it, including the gate. A gate of 0 leaves the output unchanged, which is how training begins.

    `vidsparse.load_gates` adds the gates of a checkpoint to its transformer. Calls that run dense (`StepSchedule`,
    `min_tokens`, or for a reason in the report) are the model's own attention, without the branch.

    With text in the sequence the tiles are those of the video: text is not part of a mean, and its rows do not change.

    Paper: Zhang et al., VSA, arXiv 2505.13389. Code: hao-ai-lab/FastVideo at 47c1d6a (`fastvideo-kernel`, `ops.py`).
    Differences: the branch is float32 up to the product with the gate, while the official one is rounded to the model's
    dtype before. FastVideo's variant for a model with text (MiniMax-H3, at 03bfad2), in which text is cut into tiles
    as well, is not included.
    """

    def correct(self, call: SparseCall) -> torch.Tensor:
        if call.gate is None:
            raise ValueError(
                f"{call.context.transformer} layer {call.context.layer} has no to_gate_compress, the gate of {self}; "
                "load a checkpoint's gates first, such as vidsparse.load_gates(pipe.transformer, "
                "'FastVideo/FastWan2.1-T2V-1.3B-Diffusers'), or use no correction"
            )
        block_map, out = call.block_map, call.out
        grid = block_map.grid
        query = tile_means(call.query, grid.view, block_map.query_tile, grid.prefix)
        keys, values = (tile_means(x, grid.view, block_map.key_tile, grid.prefix) for x in (call.key, call.value))
        coarse = (query @ keys.mT * out.shape[-1] ** -0.5).softmax(dim=-1) @ values
        # An additional tile of zeros for prefix and suffix tokens.
        coarse = torch.nn.functional.pad(coarse, (0, 0, 0, 1)).to(out.dtype)
        owner = tile_of_token(grid.view, block_map.query_tile)
        owner = torch.nn.functional.pad(owner, (grid.prefix, grid.suffix), value=coarse.shape[2] - 1).to(out.device)
        return torch.addcmul(out, call.gate, coarse.transpose(1, 2)[:, owner])
