"""Weights of blocks rest in the CPU's memory; gradients stay the same to the bit, and what learns stays where it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_training import assert_same, lines as log_lines, measured, pipeline, train
from trained_families import CASES
from twins import ignores_warnings

from vidsparse.finetune.families import task_for
from vidsparse.finetune.memory import swap
from vidsparse.finetune.memory.base import cast_layers, whole_blocks
from vidsparse.finetune.memory.swap import BlockSwap, Coming, blocks_of, check_blocks, swapped
from vidsparse.finetune.memory.wrapped import bytes_of
from vidsparse.finetune.objective import loss_of

# A family of each kind of blocks.
NAMES = [
    "wan2.2-image",
    "hunyuan",
    "framepack",
    "hunyuan15",
    "ltx",
    "ltx2",
    "cogvideox",
    "mochi",
    "kandinsky5",
    "skyreels",
]
CPU = torch.device("cpu")


class Watched(BlockSwap):
    """Weights that rest cannot be computed with, and what is sent is recorded."""

    def __init__(self, *arguments: Any):
        self.sent: list[int] = []
        self.copies: list[tuple[int, weakref.ref[torch.UntypedStorage]]] = []
        super().__init__(*arguments)
        self._spoilt = [[self._nothing(weight) for weight in weights] for weights in self._hosts]
        for index, weights in enumerate(self._spoilt):
            self._put(index, weights)

    def remove(self) -> None:
        for index, weights in enumerate(self._hosts):
            self._put(index, weights)
        super().remove()

    def _nothing(self, weight: torch.nn.Parameter) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.empty(weight.shape, device="meta", dtype=weight.dtype), requires_grad=False)

    def _after(self, index: int) -> None:
        self._put(index, self._spoilt[index])

    def _send(self, index: int) -> Coming:
        self.sent.append(index)
        made = super()._send(index)
        self.copies += [(index, weakref.ref(weight.untyped_storage())) for weight in made.weights]
        alive = {block for block, copy in self.copies if copy() is not None}
        assert len(alive) <= 2, f"two blocks at a time: one that runs, and one on its way; here {alive}"
        return made


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watched]]:
    made: list[Watched] = []

    def make(*arguments: Any) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    monkeypatch.setattr(swap, "BlockSwap", make)
    yield made


def with_lora(pipe: Any) -> Any:
    transformer = pipe.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=2, target_modules=list(task_for(pipe).targets), init_lora_weights=False))
    transformer.enable_gradient_checkpointing()
    return transformer.train()


def gradients(pipe: Any, view: tuple[int, int, int], on: bool) -> list[torch.Tensor | None]:
    transformer, task = pipe.transformer, task_for(pipe)
    torch.manual_seed(1)
    blank = task.blank(transformer.config, view, 5)
    for tensor in (blank.latents, blank.noise, blank.text):
        torch.nn.init.normal_(tensor)
    blank.level.fill_(0.5)
    for name, tensor in blank.more.items():
        if tensor.is_floating_point() and "mask" not in name:
            torch.nn.init.normal_(tensor)
    learned = [weight for weight in transformer.parameters() if weight.requires_grad]
    with swapped(transformer, learned, CPU, on):
        loss, _ = loss_of(transformer, blank, task)
        return list(torch.autograd.grad(loss, learned, allow_unused=True))


@ignores_warnings
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_and_blocks_come_in_turn(name: str, watched: list[Watched]) -> None:
    pipe = CASES[name].pipe()
    transformer, task = with_lora(pipe), task_for(pipe)
    before = dict(transformer.named_parameters())
    bucket = CASES[name].bucket
    view = task.view(bucket.frames, bucket.height, bucket.width)
    plain = gradients(pipe, view, on=False)
    found = gradients(pipe, view, on=True)
    assert any(one is not None and one.abs().max() > 0 for one in plain)
    for one, other in zip(plain, found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]
    (used,) = watched
    count = len(blocks_of(transformer))
    assert used.sent == [*range(count), *reversed(range(count))]
    after = dict(transformer.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    frozen = sum(
        bytes_of(weight)
        for block in blocks_of(transformer)
        for weight in block.parameters()
        if not weight.requires_grad
    )
    assert used.resting == frozen > 0


def test_a_call_without_gradients_and_one_that_fails(watched: list[Watched]) -> None:
    transformer = pipeline().transformer
    inputs = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    with torch.no_grad():
        own = transformer(*inputs)[0]
        with swapped(transformer, (), CPU):
            assert torch.equal(transformer(*inputs)[0], own)
            (used,) = watched
            assert used.sent == [0, 1]
            with pytest.raises(AttributeError):  # it has no embedding of the time
                transformer.blocks[0](torch.randn(1, 4, 7), None, None, None)
            assert all(weight.device.type == "meta" for weight in transformer.blocks[0].parameters())
            assert torch.equal(transformer(*inputs)[0], own)
        assert torch.equal(transformer(*inputs)[0], own)


def test_layers_in_float8_come_and_go_too(watched: list[Watched]) -> None:
    pipe = pipeline()
    transformer = with_lora(pipe)
    cast_layers(transformer, torch.float32)
    with whole_blocks("float8"):
        plain = gradients(pipe, (3, 4, 4), on=False)
        found = gradients(pipe, (3, 4, 4), on=True)
    assert all(map(torch.equal, plain, found)) and watched[0].resting > 0
    assert transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn


def test_a_training_is_the_same_with_it(tmp_path: Path, cache: Path) -> None:
    more = dict(gradient_checkpointing=True, sample_every=2, validation_share=0.25)
    plain = train(tmp_path / "plain", cache, **more)
    pipe = pipeline()
    assert_same(
        train(tmp_path / "away", cache, pipe, steps=2, offload_base=True, **more),
        train(tmp_path / "half", cache, steps=2, **more),
    )
    # It may be switched while a training goes on.
    assert_same(train(tmp_path / "half", cache, offload_base=True, **more), plain)
    found, expected = ([measured(line) for line in log_lines(tmp_path / name)] for name in ("half", "plain"))
    assert found == expected
    assert len(list((tmp_path / "half/samples").glob("*.mp4"))) == 3
    assert not any(block._forward_pre_hooks for block in pipe.transformer.blocks)


def test_the_other_expert_is_swapped_too_while_it_samples(tmp_path: Path, cache: Path, watched: list[Watched]) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer.eval())
    pipe.register_to_config(boundary_ratio=0.9)
    other = dict(pipe.transformer_2.named_parameters())
    train(tmp_path, cache, pipe, steps=1, samples=True, offload_base=True, gradient_checkpointing=True)
    trained, sampled = watched
    assert trained.resting == sampled.resting > 0 and len(trained.sent) > 4 and len(sampled.sent) > 0
    assert all(weight is other[name] for name, weight in pipe.transformer_2.named_parameters())
    assert (tmp_path / "samples/step-0000001-0.mp4").is_file()


def test_what_cannot_be_swapped() -> None:
    with pytest.raises(NotImplementedError, match="offload_base moves blocks, and Linear has no list of them"):
        check_blocks(torch.nn.Linear(2, 2))
    blocks = torch.nn.Module()
    blocks.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    kind = type("Params4bit", (torch.nn.Parameter,), {})
    blocks.blocks[0].weight = kind(torch.zeros(2, 2), requires_grad=False)
    with pytest.raises(NotImplementedError, match="does not move weights of bitsandbytes"):
        check_blocks(blocks)
