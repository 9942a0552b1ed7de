"""Video Sparse Attention (VSA): both branches against float64 loops, and a checkpoint from its files to its output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import save_file
from tiny_wan import call, tiny, tokens_of

import vidsparse
from vidsparse import (
    BlockMap,
    Context,
    GatedCoarse,
    SparseCall,
    VideoGrid,
    VideoSparse,
    load_gates,
    sparse_attention,
    sparsify,
)
from vidsparse.runtime.gates import has_gates

GRIDS = {
    "4x8x8": VideoGrid(4, 8, 8),
    "5x7x11": VideoGrid(5, 7, 11),
    "1x9x5": VideoGrid(1, 9, 5),
    "2+4x5x6+3": VideoGrid(4, 5, 6, prefix=2, suffix=3),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
DENSITY = 0.3
TINY = dict(rtol=1e-4, atol=1e-5)  # float32, outputs of order 1
CUBE = (4, 4, 4)
EXACT, RAGGED = (4, 16, 16), (5, 14, 22)  # latents of 4x8x8 and 5x7x11 tokens


def tile_members(grid: VideoGrid) -> list[list[int]]:
    """Positions of the tokens of each tile (4, 4, 4), from their coordinates."""
    members: dict[tuple[int, ...], list[int]] = {}
    for frame in range(grid.frames):
        for row in range(grid.height):
            for column in range(grid.width):
                place = grid.prefix + (frame * grid.height + row) * grid.width + column
                members.setdefault((frame // 4, row // 4, column // 4), []).append(place)
    return [members[tile] for tile in sorted(members)]


def vsa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, grid: VideoGrid, kept: int
) -> torch.Tensor:
    """The definition, tile by tile in the dtype of its inputs; prefix and suffix see all and are seen by all."""
    tiles, scale = tile_members(grid), q.shape[-1] ** -0.5
    text = [i for i in range(grid.tokens) if not grid.prefix <= i < grid.prefix + grid.video_tokens]
    samples = []
    for b in range(q.shape[0]):
        heads = []
        for h in range(q.shape[2]):
            means = [torch.stack([x[b, tile, h].mean(dim=0) for tile in tiles]) for x in (q, k, v)]
            scores = means[0] @ means[1].T * scale
            coarse = scores.softmax(dim=-1) @ means[2]
            rows: dict[int, torch.Tensor] = {}
            for number, tile in enumerate(tiles):
                best = scores[number].detach().topk(kept).indices.tolist()
                seen = text + [token for j in best for token in tiles[j]]
                fine = (q[b, tile, h] @ k[b, seen, h].T * scale).softmax(dim=-1) @ v[b, seen, h]
                rows |= dict(zip(tile, fine + gate[b, tile, h] * coarse[number], strict=True))
            for token in text:
                rows[token] = (q[b, token, h] @ k[b, :, h].T * scale).softmax(dim=-1) @ v[b, :, h]
            heads.append(torch.stack([rows[token] for token in range(grid.tokens)]))
        samples.append(torch.stack(heads, dim=1))
    return torch.stack(samples)


def content(grid: VideoGrid, batch: int = 2, heads: int = 2, head_dim: int = 8) -> list[torch.Tensor]:
    """Query, key, value and gate; queries and keys long enough that attention is far from uniform."""
    query, key, value, gate = torch.randn(4, batch, grid.tokens, heads, head_dim)
    return [2 * query, 2 * key, value, gate]


def official_top_k(sparsity: float, tiles: int) -> int:
    """FastVideo's number of key tiles."""
    return max(1, min(math.ceil((1 - sparsity) * tiles), tiles))


def sparse_call(block_map: BlockMap, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **fields: Any) -> SparseCall:
    out, lse = sparse_attention(q, k, v, block_map, impl="cpu", return_lse=True)
    return SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse), **fields)


# The two branches


@every_grid
def test_both_branches_and_their_gradients_against_the_definition(grid: VideoGrid) -> None:
    found, expected = content(grid), []
    weight = torch.randn_like(found[0])
    for x in found:
        expected.append(x.double().requires_grad_())
        x.requires_grad_()
    block_map = VideoSparse(DENSITY).select(found[0], found[1], grid, Context())
    out = GatedCoarse().correct(sparse_call(block_map, *found[:3], gate=found[3]))
    wanted = vsa(*expected, grid, official_top_k(1 - DENSITY, len(tile_members(grid))))
    torch.testing.assert_close(out.double(), wanted, **TINY)
    (out * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    for name, x, y in zip("qkvg", found, expected, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("grid", [GRIDS["5x7x11"], VideoGrid(5, 30, 33)], ids=["12-tiles", "144-tiles"])
def test_the_number_of_tiles_is_the_official_one(sparsity: float, grid: VideoGrid) -> None:
    tiles = len(tile_members(grid))
    counts = VideoSparse(density=round(1 - sparsity, 6)).plan(grid).counts  # type: ignore[union-attr]
    assert (counts == official_top_k(sparsity, tiles)).all()
    assert (counts == VideoSparse(density=1 - sparsity).plan(grid).counts).all()  # type: ignore[union-attr]


def test_published_sizes() -> None:
    """61 frames of 448x832, which FastWan 2.1 was trained on, and 81 of 480x832, which has border tiles."""
    for grid, tiles, kept in ((VideoGrid(16, 28, 52), 364, 73), (VideoGrid(21, 30, 52), 624, 125)):
        block_map = VideoSparse(density=0.2).plan(grid)
        assert isinstance(block_map, BlockMap)
        assert (block_map.key_tiles, int(block_map.counts.max())) == (tiles, kept)


def test_nothing_is_kept_for_its_place() -> None:
    grid = VideoGrid(1, 4, 8)
    query, key = torch.zeros(2, 1, grid.tokens, 1, 2)
    query[..., 0] = 1.0
    key.view(4, 8, 2)[:, 4:] = 1.0  # the second tile, whoever asks
    assert VideoSparse(0.5).select(query, key, grid, Context()).indices.flatten().tolist() == [1, 1]


@every_grid
def test_text_and_a_gate_of_zero_leave_the_output(grid: VideoGrid) -> None:
    q, k, v, gate = content(grid)
    now = sparse_call(VideoSparse(DENSITY).select(q, k, grid, Context()), q, k, v, gate=gate)
    text = now.block_map.layout.query.extra_tokens
    found = GatedCoarse().correct(now)
    assert torch.equal(found[:, text], now.out[:, text])
    assert torch.equal(GatedCoarse().correct(replace(now, gate=torch.zeros_like(gate))), now.out)


def test_bfloat16() -> None:
    grid = GRIDS["5x7x11"]
    low = [x.bfloat16() for x in content(grid)]
    block_map = VideoSparse(DENSITY).select(low[0], low[1], grid, Context())
    found = GatedCoarse().correct(sparse_call(block_map, *low[:3], gate=low[3]))
    wanted = vsa(*(x.double() for x in low), grid, official_top_k(1 - DENSITY, 12))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4 * 2**-8 * float(wanted.abs().max()))


# A checkpoint, from its files to its output


def tiny_gates(layers: int = 2, width: int = 24) -> dict[str, torch.Tensor]:
    """As FastVideo saves them."""
    gates = {}
    for i in range(layers):
        gates[f"blocks.{i}.to_gate_compress.weight"] = torch.randn(width, width) / width**0.5
        gates[f"blocks.{i}.to_gate_compress.bias"] = torch.randn(width)
    return gates


def save_checkpoint(folder: Path, transformer: WanTransformer3DModel, gates: dict[str, torch.Tensor]) -> None:
    """A pipeline's folder whose transformer carries gates, as published checkpoints do."""
    transformer.save_pretrained(folder / "transformer")
    save_file(transformer.state_dict() | gates, folder / "transformer" / "diffusion_pytorch_model.safetensors")


@contextmanager
def by_hand(transformer: Any, gates: dict[str, torch.Tensor], grid: VideoGrid, kept: int) -> Iterator[None]:
    """The model with VSA written out in its self-attention."""
    originals = [block.attn1.processor for block in transformer.blocks]

    def processor(number: int) -> Any:
        weight, bias = (gates[f"blocks.{number}.to_gate_compress.{part}"] for part in ("weight", "bias"))

        def attention(attn: Any, x: torch.Tensor, text: Any, mask: Any, rotary: Any) -> torch.Tensor:
            query, key = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x))
            value, gate = attn.to_v(x), x @ weight.T + bias
            query, key, value, gate = (y.unflatten(-1, (attn.heads, -1)) for y in (query, key, value, gate))
            cos, sin = (y[..., ::2] for y in rotary)
            query, key = (
                torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)).flatten(
                    -2
                )
                for y in (query, key)
            )
            out: torch.Tensor = attn.to_out[0](vsa(query, key, value, gate, grid, kept).flatten(2))
            return out

        return attention

    for number, block in enumerate(transformer.blocks):
        block.attn1.processor = processor(number)
    try:
        yield
    finally:
        for block, original in zip(transformer.blocks, originals, strict=True):
            block.attn1.processor = original


@torch.no_grad()
@pytest.mark.parametrize("sizes", [EXACT, RAGGED], ids=["4x8x8", "5x7x11"])
def test_a_checkpoint_runs_as_its_definition(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    gates, grid = tiny_gates(), tokens_of(sizes)
    save_checkpoint(tmp_path, tiny(), gates)
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "transformer").eval()
    load_gates(transformer, tmp_path)
    with by_hand(transformer, gates, grid, kept=official_top_k(1 - DENSITY, len(tile_members(grid)))):
        expected = call(transformer, sizes, batch=2)
    with sparsify(transformer, VideoSparse(DENSITY), correction=GatedCoarse()) as run:
        found = call(transformer, sizes, batch=2)
        assert run.report().sparse_calls == 2
    torch.testing.assert_close(found, expected, **TINY)
    with sparsify(transformer, VideoSparse(DENSITY)):
        assert (call(transformer, sizes, batch=2) - expected).abs().max() > 1e-2, "the gates change nothing"


@torch.no_grad()
@pytest.mark.parametrize("sizes", [EXACT, RAGGED], ids=["4x8x8", "5x7x11"])
def test_all_tiles_and_gates_of_zero_are_the_untouched_model(sizes: tuple[int, int, int]) -> None:
    transformer = tiny()
    expected = call(transformer, sizes)
    load_gates(transformer, {name: torch.zeros_like(gate) for name, gate in tiny_gates().items()})
    assert torch.equal(call(transformer, sizes), expected)
    with sparsify(transformer, VideoSparse(density=1.0), correction=GatedCoarse()):
        torch.testing.assert_close(call(transformer, sizes), expected, **TINY)


def test_gates_train() -> None:
    transformer, gates = tiny(), tiny_gates()
    load_gates(transformer, gates)
    with by_hand(transformer, {n: g.requires_grad_() for n, g in gates.items()}, tokens_of(RAGGED), kept=4):
        call(transformer, RAGGED).square().mean().backward()
    wanted = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    with sparsify(transformer, VideoSparse(DENSITY), correction=GatedCoarse()):
        call(transformer, RAGGED).square().mean().backward()
    for i, block in enumerate(transformer.blocks):
        for part in ("weight", "bias"):
            found = getattr(block.attn1.to_gate_compress, part).grad
            torch.testing.assert_close(found, gates[f"blocks.{i}.to_gate_compress.{part}"].grad, rtol=1e-3, atol=1e-7)
        found = block.attn1.to_q.weight.grad
        torch.testing.assert_close(found, wanted[f"blocks.{i}.attn1.to_q.weight"], rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_autocast_and_groups_of_heads() -> None:
    transformer = tiny()
    load_gates(transformer, tiny_gates())
    seen: list[SparseCall] = []

    class Spying(GatedCoarse):
        def correct(self, call: SparseCall) -> torch.Tensor:
            seen.append(call)
            return super().correct(call)

    class EachHead(VideoSparse):
        def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Any:
            maps = [VideoSparse.select(self, query[:, :, [h]], key[:, :, [h]], grid, context) for h in (1, 0)]
            return tuple(vidsparse.HeadGroup((h,), m) for h, m in zip((1, 0), maps, strict=True))

    results = []
    for pattern in (VideoSparse(DENSITY), EachHead(DENSITY)):
        with sparsify(transformer, pattern, correction=Spying()):
            results.append(call(transformer))
    torch.testing.assert_close(*results, **TINY)
    shapes = [now.gate.shape[2:] for now in seen if now.gate is not None]
    assert shapes == [(2, 12)] * 2 + [(1, 12)] * 4
    with torch.autocast("cpu", torch.bfloat16), sparsify(transformer, VideoSparse(DENSITY), correction=Spying()):
        call(transformer)
    assert {now.gate.dtype for now in seen[6:] if now.gate is not None} == {torch.bfloat16}


def test_without_a_gate_the_layer_is_named() -> None:
    model = tiny()
    load_gates(model, tiny_gates())
    del model.blocks[1].attn1.to_gate_compress
    message = r"transformer layer 1 has no to_gate_compress, .* vidsparse\.load_gates\(pipe\.transformer"
    with sparsify(model, VideoSparse(DENSITY), correction=GatedCoarse()), pytest.raises(ValueError, match=message):
        call(model)


# Loading


def test_sources_that_hold_the_same_gates(tmp_path: Path) -> None:
    gates = tiny_gates()
    save_checkpoint(tmp_path, tiny(), gates)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    saved = tiny()
    load_gates(saved, gates)
    saved.save_pretrained(tmp_path / "again")  # under diffusers' names: blocks.0.attn1.to_gate_compress.weight
    for source in (
        tmp_path,
        str(tmp_path),
        tmp_path / "transformer",
        file,
        gates | tiny().state_dict(),
        tmp_path / "again",
    ):
        transformer = tiny().bfloat16().requires_grad_(False)
        load_gates(transformer, source)
        for i, block in enumerate(transformer.blocks):
            gate: Any = block.attn1.to_gate_compress
            assert not gate.weight.requires_grad and not gate.bias.requires_grad
            for part in ("weight", "bias"):
                wanted = gates[f"blocks.{i}.to_gate_compress.{part}"]
                assert torch.equal(getattr(gate, part), wanted.bfloat16())
                assert getattr(gate, part).data_ptr() != wanted.data_ptr()


def without_bias(model: Any) -> Any:
    for block in model.blocks:
        old = block.attn1.to_q
        block.attn1.to_q = torch.nn.Linear(old.in_features, old.out_features, bias=False)
    return model


@pytest.mark.parametrize("bias", [False, True], ids=["gate-without-bias", "gate-with-bias"])
def test_gates_of_a_model_whose_queries_have_no_bias(bias: bool) -> None:
    gates = {name: gate for name, gate in tiny_gates().items() if bias or not name.endswith(".bias")}
    transformer = without_bias(tiny())
    load_gates(transformer, gates)
    for i, block in enumerate(transformer.blocks):
        gate: Any = block.attn1.to_gate_compress
        assert torch.equal(gate.weight, gates[f"blocks.{i}.to_gate_compress.weight"])
        assert (gate.bias is not None) == bias
    with sparsify(transformer, VideoSparse(DENSITY), correction=GatedCoarse()) as run:
        call(transformer)
        assert run.report().sparse_calls == 2
    if not bias:
        with pytest.raises(ValueError, match=r"without blocks\.0\.attn1\.to_gate_compress\.bias"):
            load_gates(tiny(), gates)


def test_whether_a_source_has_gates(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "gated", tiny(), tiny_gates())
    tiny().save_pretrained(tmp_path / "plain" / "transformer")
    (tmp_path / "empty").mkdir()
    assert has_gates(tiny(), tmp_path / "gated") and has_gates(tiny(), tmp_path / "gated" / "transformer")
    for name in ("plain", "empty", "missing"):
        assert not has_gates(tiny(), tmp_path / name)
    assert not has_gates(tiny(), "nobody/nothing"), "nothing is downloaded for the question"
    assert not has_gates(torch.nn.Linear(1, 1), tmp_path / "gated")


def test_gates_are_found_in_every_shard(tmp_path: Path) -> None:
    gates = tiny_gates()
    for number, name in enumerate(gates):
        save_file({name: gates[name], "other": torch.zeros(1)}, tmp_path / f"part-{number}.safetensors")
    transformer = tiny()
    load_gates(transformer, tmp_path)
    assert torch.equal(transformer.blocks[1].attn1.to_gate_compress.bias, gates["blocks.1.to_gate_compress.bias"])


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = tiny_gates()
    (tmp_path / "transformer_2").mkdir()
    save_file(gates, tmp_path / "transformer_2" / "model.safetensors")

    def snapshot(repository: str, allow_patterns: str, local_files_only: bool) -> str:
        assert (repository, allow_patterns) == ("FastVideo/Some-Model", "transformer_2/*.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("vidsparse.runtime.gates.snapshot_download", snapshot)
    transformer = tiny()
    load_gates(transformer, "FastVideo/Some-Model", subfolder="transformer_2")
    assert torch.equal(transformer.blocks[0].attn1.to_gate_compress.weight, gates["blocks.0.to_gate_compress.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"blocks.{i}.to_gate_compress.{part}": None for i in (0, 1) for part in ("weight", "bias")},
            "has no to_gate_",
        ),
        ({"blocks.1.to_gate_compress.bias": None}, r"without blocks\.1\.attn1\.to_gate_compress\.bias: every"),
        (
            {
                "blocks.2.to_gate_compress.weight": torch.zeros(24, 24),
                "blocks.2.to_gate_compress.bias": torch.zeros(24),
            },
            r"blocks\.2\.attn1\.to_gate_compress\.bias and 1 more: the transformer has no such layer, only blocks\.0",
        ),
        ({"blocks.0.to_gate_compress.weight": torch.zeros(24, 12)}, r"has shape \(24, 12\), expected \(24, 24\)"),
    ],
    ids=["none", "missing", "left-over", "shape"],
)
def test_a_state_that_does_not_fit_changes_nothing(changes: dict[str, Any], message: str) -> None:
    transformer = tiny()
    given = {name: gate for name, gate in (tiny_gates() | changes).items() if gate is not None}
    with pytest.raises(ValueError, match=message):
        load_gates(transformer, given)
    assert not any(hasattr(block.attn1, "to_gate_compress") for block in transformer.blocks)


def test_sources_that_are_none(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path, r"holds no \*\.safetensors"),
        (tmp_path / "nowhere", "is neither a file or folder"),
        ("nowhere", "is neither a file or folder"),
    ):
        with pytest.raises(ValueError, match=message):
            load_gates(tiny(), source)


def test_transformers_that_take_no_gates() -> None:
    with torch.device("meta"):
        ltx, wan = LTXVideoTransformer3DModel(num_layers=1), tiny()
    with pytest.raises(NotImplementedError, match="not LTXVideoTransformer3DModel"):
        load_gates(ltx, tiny_gates())
    with pytest.raises(ValueError, match=r"blocks\.0\.attn1 is on the meta device, without weights: load the transf"):
        load_gates(wan, tiny_gates())


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"density": 0.0}, r"density=0\.0 must be in \(0, 1\]"), ({"tile": (4, 4)}, r"tile=\(4, 4\) must be")],
    ids=repr,
)
def test_bad_arguments(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoSparse(**fields)
