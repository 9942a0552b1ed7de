"""Head modes: each mode against its rule, groups, tables and files, and what a model computes with them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from vidsparse import Context, Reuse, StepSchedule, VideoGrid, head_groups, sparse_attention, sparsify
from vidsparse.patterns.head_modes import HeadModes

MODES = ("full", "skip-zero", "skip-mean", "diagonal", "temporal", "stripe")
GRIDS = {
    "5x7x11": VideoGrid(5, 7, 11),
    "1x8x9": VideoGrid(1, 8, 9),
    "7x1x1": VideoGrid(7, 1, 1),
    "3+3x5x2+5": VideoGrid(3, 5, 2, prefix=3, suffix=5),
}
WIDTHS: dict[str, dict[str, Any]] = {
    "default": {},
    "narrow": {"window": 0, "radius": 0, "stripe": (0, -1, 99), "tile": (1, 2, 4), "long_tile": (4, 2, 1)},
    "even": {"window": 1, "radius": 2, "stripe": (), "tile": (2, 2, 2), "long_tile": (2, 2, 2)},
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
every_width = pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
TABLE = HeadModes(
    (
        (("full", "full"), ("full", "temporal")),
        (("diagonal", "stripe"), ("skip-mean", "temporal")),
        (("skip-zero", "stripe"), ("skip-mean", "skip-zero")),
    )
)


def of_heads(*modes: str, **widths: Any) -> HeadModes:
    return HeadModes(((modes,),), **widths)


def tiny() -> WanTransformer3DModel:
    """Two layers of two heads of 12 channels."""
    torch.manual_seed(1)
    sizes = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, freq_dim=32, text_dim=16)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=4, out_channels=4, rope_max_seq_len=64, **sizes
    )
    for name, parameter in transformer.named_parameters():
        if ".attn1.to_" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from uniform
    return transformer.eval()


@torch.no_grad()
def call(transformer: torch.nn.Module, timestep: float = 500.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, 5, 14, 22, generator=generator)
    text = torch.randn(1, 7, 16, generator=generator)
    out: torch.Tensor = transformer(latents, torch.full((1,), timestep), text, return_dict=False)[0]
    return out


@every_width
@every_grid
@pytest.mark.parametrize("mode", MODES)
def test_a_pair_of_tiles_is_kept_when_one_of_its_pairs_of_tokens_is(
    mode: str, grid: VideoGrid, widths: dict[str, Any]
) -> None:
    pattern = of_heads(mode, **widths)
    ((heads, block_map, empty),) = pattern.plan(grid)
    assert heads == (0,) and empty == ("mean" if mode == "skip-mean" else "zero")
    stripe = {frame % grid.frames for frame in pattern.stripe if -grid.frames <= frame < grid.frames}
    owner = block_map.key_tile_of_token.tolist()
    expected = torch.zeros(block_map.key_tiles, block_map.key_tiles, dtype=torch.bool)
    places = list(enumerate(itertools.product(*map(range, grid.view))))
    for (i, a), (j, b) in itertools.product(places, repeat=2):
        time, row, column = (abs(p - q) for p, q in zip(a, b, strict=True))
        sees = {
            "full": True,
            "diagonal": time <= pattern.window,
            "temporal": max(row, column) <= pattern.radius,
            "stripe": b[0] in stripe or i == j,
        }
        if sees.get(mode, False):
            expected[owner[i], owner[j]] = True
    assert torch.equal(block_map.to_dense()[0, 0], expected)


def test_default_tiles_suit_the_window() -> None:
    diagonal, temporal = of_heads("diagonal", "temporal", radius=2).plan(VideoGrid(32, 24, 48))
    assert diagonal.block_map.query_tile == (1, 8, 16)
    assert temporal.block_map.query_tile[0] >= 16


@every_width
@every_grid
def test_heads_with_one_shape_of_tile_share_a_launch(grid: VideoGrid, widths: dict[str, Any]) -> None:
    modes = ("temporal", "full", "skip-mean", "skip-zero", "stripe", "temporal", "diagonal", "skip-mean")
    groups = of_heads(*modes, **widths).plan(grid, Context(heads=8))
    assert head_groups(groups, 8) == groups
    found = [(group.empty, group.block_map.query_tile) for group in groups]
    assert len(set(found)) == len(found) <= 3
    for group in groups:
        assert {modes[head] == "skip-mean" for head in group.heads} == {group.empty == "mean"}
        same = len({modes[head] for head in group.heads}) == 1
        assert group.block_map.counts.shape[:2] == (1, 1 if same else len(group.heads))
        assert group.block_map.indices.shape[:3] == group.block_map.counts.shape


@every_width
@every_grid
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_a_group_gives_what_one_launch_for_each_head_gives(grid: VideoGrid, widths: dict[str, Any], impl: str) -> None:
    modes = ("diagonal", "temporal", "skip-zero", "full", "diagonal", "stripe", "temporal")
    q, k, v = torch.randn(3, 2, grid.tokens, len(modes), 8)
    for heads, block_map, _ in of_heads(*modes, **widths).plan(grid):
        qs, ks, vs = (x[:, :, list(heads)] for x in (q, k, v))
        together = sparse_attention(qs, ks, vs, block_map, impl=impl)
        for i, head in enumerate(heads):
            ((_, alone, _),) = of_heads(modes[head], **widths).plan(grid)
            one = [x[:, :, head : head + 1] for x in (q, k, v)]
            assert torch.equal(together[:, :, i : i + 1], sparse_attention(*one, alone, impl=impl))
            if modes[head] == "skip-zero" and not grid.prefix:
                assert not together[:, :, i].any()


def test_layers_and_phases_with_the_same_modes_share_a_plan() -> None:
    grid = GRIDS["5x7x11"]
    table = HeadModes(((("full", "stripe"), ("stripe", "full")), (("stripe", "full"), ("full", "stripe"))))
    first = table.plan(grid, Context(layer=0, layers=2, sigma=1.0))
    assert table.plan(grid, Context(layer=1, layers=2, sigma=0.1, step=9)) is first
    assert table.plan(grid, Context(layer=1, layers=2, sigma=1.0)) is not first
    assert hash(table) == hash(HeadModes(table.table))


@pytest.mark.parametrize(
    ("bounds", "phases"),
    [(None, [0, 0, 1, 1, 2, 2, 2]), ((0.9, 0.5), [0, 1, 1, 2, 2, 2, 2]), ((0.2, 0.1), [0, 0, 0, 0, 0, 1, 2])],
    ids=["equal", "early", "late"],
)
def test_phases_go_by_noise(bounds: tuple[float, ...] | None, phases: list[int]) -> None:
    pattern = HeadModes(TABLE.table, bounds=bounds)
    sigmas = [1.0, 0.7, 0.6, 0.5, 0.3, 0.2, 0.0]
    assert [pattern.phase(sigma) for sigma in sigmas] == phases
    for sigma, phase in zip(sigmas, phases, strict=True):
        context = Context(layer=1, layers=2, heads=2, sigma=sigma)
        expected = of_heads(*TABLE.table[phase][1]).plan(GRIDS["5x7x11"])
        for found, wanted in zip(pattern.plan(GRIDS["5x7x11"], context), expected, strict=True):
            assert found == wanted


def test_a_layer_of_full_heads_is_dense() -> None:
    assert [TABLE.is_dense(Context(layer=n, layers=2, sigma=s)) for s in (1.0, 0.5) for n in (0, 1)] == [1, 0, 0, 0]


# Tables and files


@pytest.mark.parametrize("layers, heads", [(3, 2), (2, 3), (30, 12)])
def test_a_table_for_another_model(layers: int, heads: int) -> None:
    message = rf"for 2 layers of 2 heads, the model has {layers} layers of {heads} heads"
    with pytest.raises(ValueError, match=message):
        TABLE.check_model(layers, heads)
    with pytest.raises(ValueError, match=message):
        TABLE.plan(GRIDS["7x1x1"], Context(layers=layers, heads=heads))
    TABLE.check_model(2, 2)
    with pytest.raises(ValueError, match="the model has 5 layers"):
        TABLE.plan(GRIDS["7x1x1"], Context(layer=4))


@pytest.mark.parametrize("table", [((("full",) * 3,) * 2,), ((("full", "full"),) * 3,)], ids=["heads", "layers"])
def test_a_table_for_another_model_is_refused_before_it_runs(table: Any) -> None:
    transformer = tiny()
    before = [block.attn1.processor for block in transformer.blocks]
    with pytest.raises(ValueError, match="the model has 2 layers of 2 heads; use a table that was made for it"):
        sparsify(transformer, StepSchedule(Reuse(HeadModes(table)), dense_steps=1))
    assert [block.attn1.processor for block in transformer.blocks] == before


@pytest.mark.parametrize(
    "pattern",
    [TABLE, HeadModes(TABLE.table, (0.8, 0.3), 0, 3, (0, -1), (1, 8, 8), (16, 2, 2))],
    ids=["defaults", "all-fields"],
)
def test_to_json_and_back(pattern: HeadModes, tmp_path: Path) -> None:
    path = tmp_path / "modes.json"
    path.write_text("an older file")
    pattern.to_json(path)
    again = HeadModes.from_json(str(path))
    assert again == pattern and hash(again) == hash(pattern)
    assert [file.name for file in tmp_path.iterdir()] == ["modes.json"]


def test_a_file_may_hold_the_table_alone(tmp_path: Path) -> None:
    (tmp_path / "modes.json").write_text(json.dumps({"table": TABLE.table}))
    assert HeadModes.from_json(tmp_path / "modes.json") == TABLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "got list, expected an object with 'table' and any of bounds, window"),
        ('{"window": 1}', r"got \['window'\], expected an object with 'table'"),
        ('{"table": [[["full"]]], "widow": 1}', r"got \['table', 'widow'\]"),
        ('{"table": [[["fast"]]]}', "unknown mode 'fast'"),
        ('{"table": [[["full"]]], "window": "1"}', "must be a whole number of at least 0"),
        ('{"table": [[["full"]]], "bounds": 0.5}', "bounds=0.5 must be a tuple of 0"),
        ('{"table": "full"}', "must be mode"),
        ('{"table": [[["full"]], [["full"]]], "bounds": ["a"]}', "must be a tuple of 1 noise levels"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "modes.json").write_text(text)
    with pytest.raises(ValueError, match=rf"modes\.json holds no table of head modes: .*{message}"):
        HeadModes.from_json(tmp_path / "modes.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": ()}, r"mode\[phase\]\[layer\]\[head\]"),
        ({"table": (((),),)}, r"got \[1\] layers and \[0\] heads"),
        ({"table": [[["full"]]]}, "in tuples"),
        ({"table": ((("full",), ("full", "full")),)}, r"got \[2\] layers and \[1, 2\] heads"),
        ({"table": ((("full",),), (("full",), ("full",)))}, r"got \[1, 2\] layers"),
        ({"table": ((("full", "skip", 3),),)}, "unknown mode 'skip', 3 in the table; choose from full, skip-zero"),
        ({"window": -1}, "window=-1 must be"),
        ({"radius": 1.5}, "radius=1.5 must be"),
        ({"stripe": (0.5,)}, r"stripe=\(0\.5,\) must be a tuple"),
        ({"tile": (0, 8, 8)}, r"tile=\(0, 8, 8\) must be"),
        ({"long_tile": (8, 8)}, r"long_tile=\(8, 8\) must be"),
        ({"bounds": (0.5,)}, r"bounds=\(0\.5,\) must be a tuple of 2"),
        ({"bounds": (0.2, 0.5)}, "that fall"),
        ({"bounds": (1.0, 0.5)}, "from below 1"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadModes(**({"table": TABLE.table} | arguments))


# In a model


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("skip", ["skip-mean", "skip-zero"])
def test_a_skipped_head_gives_the_mean_of_all_values_or_zeros(skip: str, impl: str) -> None:
    transformer, same = tiny(), tiny()
    for block in same.blocks:
        if skip == "skip-mean":
            torch.nn.init.zeros_(block.attn1.norm_q.weight[12:])  # a query of zeros sees all alike
        else:
            torch.nn.init.zeros_(block.attn1.to_out[0].weight[:, 12:])
    expected = call(same)
    with sparsify(transformer, HeadModes(((("full", skip), ("full", skip)),)), impl=impl) as run:
        found = call(transformer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert run.report().sparse_calls == 2
    assert run.report().density == pytest.approx(0.5)
    assert (found - call(transformer)).abs().max() > 1e-3, "the skip changes nothing, so this test shows nothing"


def test_a_model_goes_through_the_phases() -> None:
    transformer = tiny()
    dense = call(transformer, 900.0)
    with sparsify(transformer, HeadModes((TABLE.table[0][:1] * 2, *TABLE.table[1:])), impl="reference") as run:
        assert torch.equal(call(transformer, 900.0), dense)
        call(transformer, 500.0)
        call(transformer, 100.0)
    calls = run.report().calls
    assert [c.reason is None for c in calls] == [False, False, True, True, True, True]
    assert calls[-1].density == 0 < calls[2].density
