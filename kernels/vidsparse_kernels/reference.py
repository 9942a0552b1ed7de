"""The specification: dense attention under the block map expanded to tokens. Slow, clear, differentiable, any dtype."""

from __future__ import annotations

import torch

from vidsparse_kernels.layout import TileLayout


def token_mask(kept: torch.Tensor, layout: TileLayout, extra_valid: torch.Tensor | None = None) -> torch.Tensor:
    """Expand a tile mask to tokens.

    Args:
        kept: bool [B|1, H|1, query tiles, key tiles].
        layout: the tiles and the tokens around them.
        extra_valid: int [B], how many prefix and suffix tokens of the keys, in sequence order, are keys; None for all.

    Returns:
        bool [B|1, H|1, query tokens, key tokens]. Prefix and suffix tokens see every key, and every token sees those
        that are keys.
    """
    query, key = layout.query, layout.key
    rows, columns = (side.tile_of_token.to(kept.device) for side in (query, key))
    video = kept[:, :, rows][:, :, :, columns]
    mask = torch.nn.functional.pad(video, (key.prefix, key.suffix, query.prefix, query.suffix), value=True)
    if extra_valid is None:
        return mask
    mask = mask.expand(extra_valid.shape[0], -1, -1, -1).clone()
    for sample, valid in zip(mask, extra_valid.tolist(), strict=True):
        sample[:, :, key.extra_tokens[valid:].to(kept.device)] = False
    return mask


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked softmax attention, computed in float32, or in float64 for float64 inputs.

    Args:
        query: [B, tokens, H, head_dim]. key, value: [B, key tokens, H, head_dim].
        mask: bool [B|1, H|1, tokens, key tokens].
        scale: factor on the logits.

    Returns:
        out [B, tokens, H, head_dim] in the dtype of the query, and lse [B, H, tokens] (natural log) in the dtype of the
        computation; a row without keys has out 0 and lse -inf.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.transpose(1, 2).to(wide) for x in (query, key, value))
    logits = (q @ k.mT * scale).masked_fill(~mask, float("-inf"))
    alive = mask.any(dim=-1)
    # A row without keys would compute -inf minus -inf: give it finite logits, then clear its results.
    logits = torch.where(alive[..., None], logits, 0.0)
    lse = logits.logsumexp(dim=-1)
    weights = torch.where(alive[..., None], logits.softmax(dim=-1), 0.0)
    out = (weights @ v).transpose(1, 2).to(query.dtype)
    return out, torch.where(alive, lse, float("-inf"))
