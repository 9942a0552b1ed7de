"""What gradient checkpointing keeps goes to the CPU and comes back; gradients stay the same to the bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import assert_same, pipeline, train

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.memory import offload
from vidsparse.finetune.memory.offload import Away, Offload, offloading
from vidsparse.finetune.objective import flow_loss


@pytest.fixture
def from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Lets tensors of the CPU leave for memory of its own, and records what goes and comes."""
    moved: list[tuple[str, int]] = []

    class Elsewhere(Offload):
        def pack(self, tensor: torch.Tensor) -> torch.Tensor | Away:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in self._kept or tensor.numel() * tensor.element_size() < self._least:
                return tensor
            return self._pack_large(tensor)

        def _send(self, tensor: torch.Tensor) -> Away:
            moved.append(("gone", tensor.numel()))
            return Away(tensor.device, tensor.detach().clone())

        def _bring(self, away: Away) -> torch.Tensor:
            moved.append(("back", away.host.numel()))
            return away.host.clone()

    monkeypatch.setattr(offload, "Offload", Elsewhere)
    return moved


def gradients(transformer: Any, on: bool) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(1)
    latents, noise = torch.randn(2, 1, 8, 3, 8, 8)
    example = Example(latents, noise, torch.randn(1, 5, 64), torch.tensor([0.5]))
    with offloading(transformer, on=on, least=1024) as used:
        loss = flow_loss(transformer, example)
    learned = [weight for weight in transformer.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, learned)), used


def test_gradients_are_the_same_and_the_hidden_states_travel(from_the_cpu: list[tuple[str, int]]) -> None:
    from peft import LoraConfig

    transformer = pipeline().transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    transformer.enable_gradient_checkpointing()
    transformer.train()
    plain, none = gradients(transformer, on=False)
    assert none is None and not from_the_cpu
    offloaded, used = gradients(transformer, on=True)
    assert all(map(torch.equal, plain, offloaded)) and used.moved > 0
    gone = [size for what, size in from_the_cpu if what == "gone"]
    back = [size for what, size in from_the_cpu if what == "back"]
    hidden = 3 * 8 * 8 * transformer.config.num_attention_heads * transformer.config.attention_head_dim
    hidden //= transformer.config.patch_size[1] * transformer.config.patch_size[2]
    assert gone.count(hidden) >= 2, "the hidden states before both blocks"
    assert gone.count(hidden) == back.count(hidden), "each comes back once"


def test_the_next_comes_back_before_it_is_asked_for() -> None:
    used = Offload(iter(()), least=0)
    tensors = [torch.randn(8) for _ in range(3)]
    packed = [used._keep(Away(tensor.device, tensor.clone()), tensor) for tensor in tensors]
    assert torch.equal(used.unpack(packed[2]), tensors[2])
    assert [away.coming is not None for away in packed] == [False, True, False]


@pytest.mark.usefixtures("from_the_cpu")
def test_a_tensor_is_on_its_device_only_while_someone_needs_it() -> None:
    used = offload.Offload(iter(()), least=0)
    tensors = [torch.randn(8) for _ in range(4)]
    contents = [tensor.clone() for tensor in tensors]
    before = [weakref.ref(tensor) for tensor in tensors]
    packed = [used.pack(tensor) for tensor in tensors]
    del tensors
    gc.collect()
    assert not any(ref() is not None for ref in before), "nothing of them stays while they are away"
    for place in (3, 2, 1, 0):
        home = used.unpack(packed[place])
        assert torch.equal(home, contents[place])
        assert used.unpack(packed[place]) is home, "there is one copy"
        gone = weakref.ref(home)
        del home
        assert gone() is None, "nor afterwards"
    assert torch.equal(used.unpack(packed[3]), contents[3]), "it comes back a second time"


def test_a_tensor_of_all_blocks_fetches_none_that_is_not_next(from_the_cpu: list[tuple[str, int]]) -> None:
    """The text is saved by each block; behind it stand the hidden states of the first, which come back last."""
    used = offload.Offload(iter(()), least=0)
    first, text = used.pack(torch.randn(2)), used.pack(torch.randn(3))
    second, third = used.pack(torch.randn(4)), used.pack(torch.randn(5))
    del from_the_cpu[:]
    for packed in (third, text, second, text):
        used.unpack(packed)
    assert [size for _, size in from_the_cpu] == [5, 4, 3, 2, 3]
    assert isinstance(first, Away) and first.coming is not None


def test_a_tensor_that_is_saved_twice_leaves_once_and_another_in_its_place_anew(
    from_the_cpu: list[tuple[str, int]],
) -> None:
    used = offload.Offload(iter(()), least=0)
    tensor = torch.randn(64)
    assert used.pack(tensor) is used.pack(tensor) and len(from_the_cpu) == 1
    gone = weakref.ref(tensor.untyped_storage())
    content, place = tensor.clone(), tensor.data_ptr()
    del tensor
    gc.collect()
    assert gone() is None
    others = [torch.randn(64) for _ in range(50)]
    same = [other for other in others if other.data_ptr() == place]
    for other in same or others[:1]:
        away = used.pack(other)
        assert isinstance(away, Away) and torch.equal(away.host, other) and not torch.equal(away.host, content)


def test_weights_and_small_tensors_stay() -> None:
    weight = torch.nn.Parameter(torch.randn(64))
    used = Offload(iter([weight]), least=1024)
    assert used.pack(weight.detach()) is not None and used.moved == 0
    with offloading(torch.nn.Linear(2, 2)) as active:
        assert active is not None and active.pack(small := torch.ones(2)) is small


def test_a_training_is_the_same_with_it(tmp_path: Path, cache: Path) -> None:
    plain = train(tmp_path / "plain", cache, gradient_checkpointing=True)
    assert_same(train(tmp_path / "away", cache, gradient_checkpointing=True, offload_activations=True), plain)
