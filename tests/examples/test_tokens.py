"""Weights that go from one size of tokens to another, and where their tokens stand."""

from __future__ import annotations

import torch
from tokens import coarsen, refine, widen_positions

from vidsparse.shapes.model import LATENT_CHANNELS, TEXT_WIDTH, build_transformer

SMALL = dict(num_layers=1, ffn_dim=64)


def test_coarse_weights_made_fine_again_are_the_fine_ones() -> None:
    fine, coarse = (build_transformer(patch, **SMALL).state_dict() for patch in (1, 4))
    back = refine(refine(coarsen(fine, coarse), 4), 2)
    assert back.keys() == fine.keys()
    for name, expected in fine.items():
        torch.testing.assert_close(back[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_where_a_patch_holds_one_value_the_coarse_model_sees_what_the_fine_one_sees() -> None:
    fine, coarse = (build_transformer(patch, **SMALL) for patch in (1, 2))
    coarse.load_state_dict(coarsen(fine.state_dict(), coarse.state_dict()))
    few = torch.randn(1, LATENT_CHANNELS, 2, 3, 3)
    many = few.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(coarse.patch_embedding(many), fine.patch_embedding(few), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(coarse.patch_embedding(many + torch.randn(many.shape)), fine.patch_embedding(few))


def test_refined_weights_answer_for_each_quarter_as_for_the_whole() -> None:
    coarse = build_transformer(2, **SMALL)
    fine = build_transformer(1, **SMALL)
    fine.load_state_dict(refine(coarse.state_dict(), 2))
    call = torch.randn(1, LATENT_CHANNELS, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 4, TEXT_WIDTH)
    assert fine(*call).sample.shape == coarse(*call).sample.shape == call[0].shape
    hidden = torch.randn(3, 192)
    expected = (hidden @ coarse.proj_out.weight.T + coarse.proj_out.bias).unflatten(-1, (4, -1)).mean(dim=1)
    torch.testing.assert_close(hidden @ fine.proj_out.weight.T + fine.proj_out.bias, expected)


def test_a_coarse_token_stands_in_the_middle_of_what_it_covers() -> None:
    fine, coarse = (build_transformer(patch, **SMALL).rope for patch in (1, 4))
    widen_positions(coarse, 4)
    video = torch.zeros(1, LATENT_CHANNELS, 2, 8, 8)
    angles = [torch.atan2(*reversed(rope(video)))[0, :, 0].unflatten(0, (2, -1)) for rope in (fine, coarse)]
    (fine_angles, coarse_angles) = (a.view(2, side, side, -1) for a, side in zip(angles, (8, 2), strict=True))

    def same(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close((a - b + 3) % (2 * torch.pi), torch.full_like(a, 3.0), rtol=0, atol=1e-4)

    # The middle between places 1 and 2, and between 5 and 6.
    for row, column in ((0, 0), (0, 1), (1, 0)):
        first = fine_angles[1, 4 * row + 1, 4 * column + 1]
        half = (fine_angles[0, 1, 1] - fine_angles[0, 0, 0]) / 2
        same(coarse_angles[1, row, column], first + half)
