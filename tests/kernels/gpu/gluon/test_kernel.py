"""The forward in Gluon, executed on a chip that is not there: against float64, in every order of asynchronous work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import against_float64
import pytest
import torch
from against_float64 import Case, Results, assert_close, plain

from vidsparse import BlockMap, VideoGrid, sparse_attention

pytest.importorskip("triton.experimental.gluon", reason="this Triton has no Gluon", exc_type=ImportError)
from emulator import ORDERS, Chip, EmulationError, Order, emulated

from vidsparse_kernels import available, reference, trial
from vidsparse_kernels.gpu import configs
from vidsparse_kernels.gpu.configs import GluonConfig, trying

BF16, F16 = torch.bfloat16, torch.float16
WHOLE = VideoGrid(4, 16, 16)
RAGGED = VideoGrid(3, 9, 10)
TEXT = VideoGrid(3, 9, 10, prefix=3, suffix=200)
LARGE, SMALL = (2, 8, 8), (1, 8, 8)
TWO, FOUR, TURNS = GluonConfig(128, 2), GluonConfig(64, 4), GluonConfig(128, 2, turns=True)


def case(grid: VideoGrid, key_tile: tuple[int, int, int], head_dim: int, **changes: object) -> Case:
    return replace(Case(grid, LARGE, key_tile, heads=1, head_dim=head_dim), **changes)  # type: ignore[arg-type]


# Samples of other lengths of text, in one of which the text ends within a step, and in one it has no key at all.
LENGTHS = {"batch": 2, "extra_valid": (190, 5)}
CASES = {
    "whole": (TWO, BF16, case(WHOLE, LARGE, 128, heads=2, map_heads=2, empty=(0, 3))),
    "whole-64-channels": (GluonConfig(128, 4), F16, case(WHOLE, LARGE, 64, heads=2, empty=(5,))),
    "whole-half-a-tile-in-a-step": (FOUR, F16, case(WHOLE, LARGE, 128, batch=2)),
    "ragged": (TWO, F16, case(RAGGED, LARGE, 128, heads=2, empty=(1,))),
    "ragged-64-channels-64-keys": (FOUR, BF16, case(RAGGED, SMALL, 64, batch=2, heads=2, map_batch=2, map_heads=2)),
    "text": (TWO, BF16, case(TEXT, LARGE, 128, **LENGTHS)),
    "text-in-turns": (TURNS, BF16, case(TEXT, LARGE, 128, **LENGTHS, empty=(0, 2))),
    "text-64-channels": (GluonConfig(128, 4, turns=True), BF16, case(TEXT, LARGE, 64, **LENGTHS)),
    "text-64-keys": (GluonConfig(64, 2), F16, case(TEXT, SMALL, 128, batch=2, extra_valid=(0, 203), empty=(1,))),
    "text-half-a-tile-in-a-step": (FOUR, BF16, case(VideoGrid(3, 9, 10, prefix=70), LARGE, 128, heads=2, map_heads=2)),
    "text-alone": (TWO, F16, case(VideoGrid(2, 8, 16, suffix=130), LARGE, 64, empty=(0, 1))),
    "new-frames": (TWO, BF16, case(VideoGrid(1, 9, 10), LARGE, 128, key_grid=TEXT, **LENGTHS)),
    "new-frames-with-text": (FOUR, F16, case(VideoGrid(2, 9, 10, prefix=3, suffix=130), LARGE, 64, key_grid=WHOLE)),
    "fewer-keys": (FOUR, BF16, case(RAGGED, SMALL, 64, key_grid=VideoGrid(1, 7, 5, suffix=3), empty=(1,))),
    "three-stages": (GluonConfig(64, 3), BF16, case(VideoGrid(5, 6, 7, suffix=1), (4, 4, 4), 128)),
}


def forward(
    tensors: list[torch.Tensor], block_map: BlockMap, of: Case, config: GluonConfig, *emulation: object
) -> tuple[Results, Chip]:
    """out and lse from machine code."""
    with emulated(90, *emulation) as chip, trying("forward", config):  # type: ignore[arg-type]
        q, k, v = tensors
        out, lse = sparse_attention(q, k, v, block_map, extra_valid=of.valid, impl="triton", return_lse=True)
    return {"out": out.double(), "lse": lse.double()}, chip


def without_hidden(tensors: list[torch.Tensor], block_map: BlockMap, of: Case, value: float) -> list[torch.Tensor]:
    """Query, key and value, with this value in keys and values of text that is no key."""
    hidden = block_map.layout.padding_mask(of.valid)
    query, *others = tensors
    return tensors if hidden is None else [query, *(x.masked_fill(hidden[..., None, None], value) for x in others)]


@pytest.mark.machine_code
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_specification_says(name: str) -> None:
    config, dtype, of = CASES[name]
    block_map, tensors = of.block_map(), of.tensors(3)
    mask = block_map.token_mask(of.valid)
    rounded = [x.to(dtype) for x in tensors]
    out, lse = reference.attention(*(x.double() for x in rounded), mask, of.head_dim**-0.5)
    expected = {"out": out, "lse": lse}
    out, lse = plain(mask)(*rounded)
    bound = {"out": out.double(), "lse": lse.double()}
    given = without_hidden(rounded, block_map, of, float("nan"))
    first: Results = {}
    for order in ORDERS:
        found, chip = forward(given, block_map, of, config, order)
        first = first or found
        assert all(torch.equal(first[key], x) for key, x in found.items()), f"other bits where work is {order}"
    assert_close(first, expected, bound, dtype)
    assert (first["out"][expected["lse"].transpose(1, 2).isneginf()] == 0).all()
    (launched,) = (one for one in chip.launches if "forward" in one.kernel)
    assert launched.kernel == "gluon_forward_kernel"
    for unit in ("cp.async.bulk.tensor.load", "wgmma.mma_async"):
        assert any(instruction.startswith(unit) for instruction in launched.counts)


@pytest.mark.machine_code
def test_gradients_go_through_it_and_so_do_heads_apart() -> None:
    of = case(TEXT, LARGE, 64, heads=2, batch=2, extra_valid=(203, 17))
    block_map, tensors = of.block_map(), of.tensors(4)
    tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    mask = block_map.token_mask(of.valid)

    def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.attention(q, k, v, mask, of.head_dim**-0.5)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, extra_valid=of.valid, impl="triton", return_lse=True)

    with emulated(90) as chip, trying("forward", TWO):
        found = against_float64.run(attention, tensors, BF16)
    assert "gluon_forward_kernel" in {launched.kernel for launched in chip.launches}
    expected = against_float64.run(exact, [x.to(BF16) for x in tensors], torch.float64)
    assert_close(found, expected, against_float64.run(plain(mask), tensors, BF16), BF16)


@dataclass(frozen=True)
class Fault:
    """What is put in the place of every match in the kernel's PTX, and by what it shows: "." is anything."""

    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    shows: str


FAULTS = {
    "products-are-not-waited-for": Fault(r"wgmma\.wait_group\S+ \d+;", "", "nothing has waited for"),
    "one-group-alone-leaves-a-slot": Fault(r"(mbarrier\.init[^;]*), 2;", r"\1, 1;", "."),
    "three-groups-leave-a-slot": Fault(r"(mbarrier\.init[^;]*), 2;", r"\1, 3;", "deadlock"),
    "boxes-are-not-waited-for": Fault(r"mbarrier\.try_wait[^;]*;\s*@!\w+ bra\.uni \w+;", "", "."),
    "no-fence-before-asynchronous-reads": Fault(r"fence\.proxy\.async[^;]*;", "", "without fence.proxy.async"),
    "half-of-the-bytes-are-expected": Fault(r"(mbarrier\.arrive\.expect_tx[^;]*, )32768;", r"\g<1>16384;", "bytes"),
    "copies-are-not-waited-for": Fault(r"cp\.async\.wait_group\s+\S+;", "", "nothing has waited for"),
}


@pytest.mark.machine_code
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_it_shows(name: str) -> None:
    fault, of = FAULTS[name], case(TEXT, LARGE, 128)
    block_map, tensors = of.block_map(), [x.to(BF16) for x in of.tensors(3)]
    edited = []

    def edit(ptx: str) -> str:
        if ".entry gluon_forward_kernel(" not in ptx:
            return ptx
        changed, number = re.subn(fault.pattern, fault.replacement, ptx)
        edited.append(number)
        return changed

    right, _ = forward(tensors, block_map, of, TWO)

    def symptom(order: Order) -> str | None:
        try:
            wrong, _ = forward(tensors, block_map, of, TWO, order, edit)
        except EmulationError as error:
            return str(error)
        return None if torch.equal(right["out"], wrong["out"]) else "other numbers"

    symptoms = [found for order in ORDERS if (found := symptom(order))]
    assert edited and edited[0] > 0
    assert any(re.search(fault.shows, found) for found in symptoms), symptoms


@pytest.mark.machine_code
def test_what_it_does_not_take_is_refused() -> None:
    refused = {
        "float16, not torch.float32": (TWO, torch.float32, case(WHOLE, LARGE, 64)),
        "takes head_dim 64 and 128, not 96": (TWO, F16, case(WHOLE, LARGE, 96)),
        r"takes query tiles of 128 tokens, not \(1, 8, 8\)": (TWO, F16, Case(WHOLE, SMALL, LARGE, head_dim=64)),
        r"in a step, not 128 of \(1, 8, 8\)": (TWO, F16, case(WHOLE, SMALL, 64)),
        "reads 64 or 128 tokens of a key tile in a step, not 32": (GluonConfig(32, 2), F16, case(WHOLE, LARGE, 64)),
        "needs 2 or more stages, not 1": (GluonConfig(128, 1), F16, case(WHOLE, LARGE, 64)),
    }
    for message, (config, dtype, of) in refused.items():
        with pytest.raises(NotImplementedError, match=f"the forward in Gluon .*{message}"):
            forward([x.to(dtype) for x in of.tensors(3)], of.block_map(), of, config)
    of = case(WHOLE, LARGE, 64)
    tensors = [x.half() for x in of.tensors(3)]
    with (
        pytest.raises(NotImplementedError, match=r"the forward in Gluon needs compute capability 9\.0, not 8\.0"),
        emulated(80),
        trying("forward", TWO),
    ):
        sparse_attention(*tensors, of.block_map(), impl="triton")  # type: ignore[call-overload]


@pytest.mark.machine_code
def test_the_trial_tries_it() -> None:
    call, layout = torch.empty(1, 1, 1, 64, dtype=BF16), case(TEXT, LARGE, 64).block_map().layout
    with emulated(90) as chip, mock.patch.dict(configs.GLUON, {64: TWO}):
        assert trial.found_wrong(call, layout) is None
    assert "gluon_forward_kernel" in {launched.kernel for launched in chip.launches}
    trial._answer.cache_clear()

    def without_text(ptx: str) -> str:
        return re.sub(r"(cp\.async\.cg[^;]*0x10, )%r\d+;", r"\g<1>0;", ptx)

    with emulated(90, Order(), without_text), mock.patch.dict(configs.GLUON, {64: TWO}):
        assert "computes out with a relative error" in str(trial.found_wrong(call, layout))


# Where it is launched


def test_it_is_launched_nowhere_before_a_gpu_has_measured_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configs.GLUON == {}
    monkeypatch.setitem(configs.GLUON, 128, TWO)
    monkeypatch.setattr(configs, "gluon_lacks", lambda: None)
    assert configs.choose_gluon(90, 2, 128, 128) == TWO
    others = [(90, 4, 128, 128), (90, 2, 96, 128), (90, 2, 64, 128), (90, 2, 128, 64), (100, 2, 128, 128)]
    assert not any(configs.choose_gluon(*call) for call in [*others, (89, 2, 128, 128)])
    assert configs.choose(90, "forward", 2, 128, 128) == configs.TABLE[90, "forward"][2, 128][1]
    monkeypatch.setattr(configs, "gluon_lacks", lambda: "is not here")
    assert configs.choose_gluon(90, 2, 128, 128) is None


def test_a_launch_that_is_tried_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "gluon_lacks", lambda: None)
    with trying("forward", TURNS):
        assert configs.choose_gluon(90, 2, 128, 128) == TURNS
    monkeypatch.setitem(configs.GLUON, 128, TWO)
    with trying("forward", configs.Config(64, 8, 2)):
        assert configs.choose_gluon(90, 2, 128, 128) is None
        assert configs.choose(90, "forward", 2, 128, 128) == configs.Config(64, 8, 2)
    with pytest.raises(ValueError, match="'key_gradient' has no kernel in Gluon"), trying("key_gradient", TWO):
        pass


def test_a_triton_that_cannot_run_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    def lacks() -> str | None:
        available.gluon_lacks.cache_clear()
        return available.gluon_lacks()

    with monkeypatch.context() as patched:
        patched.setattr(triton, "__version__", "3.5.1")
        assert lacks() == "needs Triton 3.6 or newer, not 3.5.1"
        patched.setattr(configs, "gluon_lacks", lacks)
        with (
            pytest.raises(NotImplementedError, match=r"the forward in Gluon needs Triton 3\.6"),
            trying("forward", TWO),
        ):
            pass
    if triton.knobs.runtime.interpret:
        assert lacks() == "does not run in Triton's interpreter: unset TRITON_INTERPRET"


def test_a_configuration_reads_what_it_prints() -> None:
    for candidates in configs.GLUON_CANDIDATES.values():
        assert all(GluonConfig.parse(str(config)) == config for config in candidates)
    assert str(TURNS) == "gluon/128/2/turns"
    for text in ("128/2", "gluon/128", "gluon/128/2/tuns", "gluon/a/2", "gluon/128/2/turns/4"):
        with pytest.raises(ValueError):
            GluonConfig.parse(text)
