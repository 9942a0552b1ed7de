"""Launches of the kernels that take the place of the table's rows, for as long as a measurement lasts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vidsparse_kernels.available import gluon_lacks
from vidsparse_kernels.gpu import launch as chips
from vidsparse_kernels.gpu.configs import GLUON, KERNELS, TABLE, Config, GluonConfig, Kernel, family

ITEMSIZE = 2


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched for bfloat16 and float16: a row of the table that `active` puts into its place.

    Attributes:
        head_dim: 64 or 128, as the table has it. held: tokens of the tile that a program holds, 64 or 128.
    """

    kernel: Kernel
    head_dim: int
    held: int
    config: Config

    def __str__(self) -> str:
        return f"{self.kernel},{self.head_dim},{self.held},{self.config}"

    @classmethod
    def parse(cls, text: str) -> Launch:
        """Read "kernel,head_dim,tile held,step/warps/stages[/registers]", which is how one prints.

        Raises:
            argparse.ArgumentTypeError: what is not one.
        """
        try:
            name, head_dim, held, numbers = text.split(",")
            (kernel,) = (kernel for kernel in KERNELS if kernel == name)
            if head_dim not in ("64", "128") or held not in ("64", "128"):
                raise ValueError("head_dim and the tile held are 64 or 128")
            return cls(kernel, int(head_dim), int(held), Config(*map(int, numbers.split("/"))))
        except (TypeError, ValueError) as error:
            form = f"{'|'.join(KERNELS)},head_dim,tile held,step/warps/stages[/registers]"
            raise argparse.ArgumentTypeError(f"{text!r} is not {form} ({error})") from error

    @classmethod
    def of_table(cls, device: torch.device, kernel: Kernel, head_dim: int, held: int) -> Launch:
        """The row that the table has for this device.

        Raises:
            ValueError: it has none.
        """
        config = TABLE[family(chips.capability(device)), kernel][ITEMSIZE, head_dim][held > 64]
        if config is None:
            raise ValueError(f"{kernel} with head_dim {head_dim} and tiles of {held} tokens does not fit this chip")
        return cls(kernel, head_dim, held, config)

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Launch so on this device."""
        rows, key = TABLE[family(chips.capability(device)), self.kernel], (ITEMSIZE, self.head_dim)
        before, gluon = rows[key], dict(GLUON)
        rows[key] = (before[0], self.config) if self.held > 64 else (self.config, before[1])
        if self.kernel == "forward" and self.held > 64:
            GLUON.pop(self.head_dim, None)
        try:
            yield
        finally:
            rows[key] = before
            GLUON.update(gluon)


@dataclass(frozen=True)
class GluonForward:
    """The forward kernel in Gluon in the place of the one in Triton, for tiles of 128 tokens.

    Attributes:
        head_dim: 64 or 128.
    """

    head_dim: int
    config: GluonConfig

    @property
    def kernel(self) -> Kernel:
        return "forward"

    @property
    def held(self) -> int:
        return 128

    def __str__(self) -> str:
        return f"{self.kernel},{self.head_dim},{self.held},{self.config}"

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Launch so on this device.

        Raises:
            NotImplementedError: the forward in Gluon cannot run here.
        """
        chip = chips.capability(device)
        reason = gluon_lacks() or (None if family(chip) == 90 else f"needs compute capability 9.0, not {chip / 10}")
        if reason is not None:
            raise NotImplementedError(f"the forward in Gluon {reason}")
        before = dict(GLUON)
        GLUON[self.head_dim] = self.config
        try:
            yield
        finally:
            GLUON.clear()
            GLUON.update(before)


Replacement = Launch | GluonForward


def parse(text: str) -> Replacement:
    """Read what a `Launch` or a `GluonForward` prints.

    Raises:
        argparse.ArgumentTypeError: what is neither.
    """
    *row, config = text.split(",")
    if not config.startswith("gluon"):
        return Launch.parse(text)
    try:
        if row not in (["forward", "64", "128"], ["forward", "128", "128"]):
            raise ValueError("it is a forward with head_dim 64 or 128 and tiles of 128 tokens")
        return GluonForward(int(row[1]), GluonConfig.parse(config))
    except ValueError as error:
        form = "forward,head_dim,128,gluon/step/stages[/turns]"
        raise argparse.ArgumentTypeError(f"{text!r} is not {form} ({error})") from error


@contextmanager
def together(launches: tuple[Replacement, ...], device: torch.device) -> Iterator[None]:
    """All of them active."""
    with ExitStack() as stack:
        for launch in launches:
            stack.enter_context(launch.active(device))
        yield


def winners(path: Path | None) -> tuple[Replacement, ...]:
    """What `gpu_tune.py` wrote down as the fastest; nothing without a path."""
    return () if path is None else tuple(parse(text) for text in json.loads(path.read_text())["winners"])
