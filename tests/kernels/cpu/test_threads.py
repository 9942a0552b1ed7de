"""Dividing pieces over threads: all are done once, settings come back, errors surface, a forked child works."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest
import torch

from vidsparse import Radial, VideoGrid, sparse_attention
from vidsparse_kernels.cpu.threads import divide


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_piece_is_done_once_with_one_thread_and_no_gradients(threads: int) -> None:
    done: list[tuple[int, int, bool]] = []

    def work(pieces: Iterator[int]) -> None:
        for piece in pieces:
            done.append((piece, torch.get_num_threads(), torch.is_grad_enabled()))

    divide(work, range(100))
    assert sorted(piece for piece, _, _ in done) == list(range(100))
    assert {(number, grad) for _, number, grad in done} == {(1, False)}
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_an_error_in_a_piece_is_raised_and_threads_come_back(threads: int) -> None:
    def work(pieces: Iterator[int]) -> None:
        for piece in pieces:
            if piece == 7:
                raise ArithmeticError("piece 7")

    with pytest.raises(ArithmeticError, match="piece 7"):
        divide(work, range(20))
    assert torch.get_num_threads() == threads


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    block_map = Radial(density=0.4).plan(VideoGrid(5, 9, 10))
    inputs = [torch.randn(2, 450, 3, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = sparse_attention(*leaves, block_map, impl="cpu")  # type: ignore[call-overload]
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in leaves)]

    before = torch.get_num_threads()
    try:
        for one, three in zip(run(1), run(3), strict=True):
            torch.testing.assert_close(three, one, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


def _attend(queue: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(2)
    x = torch.ones(1, 450, 1, 16)
    queue.put(sparse_attention(x, x, x, Radial(density=0.4).plan(VideoGrid(5, 9, 10)), impl="cpu").mean().item())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        divide(lambda pieces: [None for _ in pieces] and None, range(4))  # the parent's pool exists
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_attend, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == pytest.approx(1.0, rel=450 * 2**-24)  # of so many roundings
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)
