"""How each kernel is launched: a literal table, and the rule that finds a row for what stands in none.

Every row fits the chip's shared memory with Triton 3.6 and 3.7; where one spills, benchmarks/results/aot.md says so.
None has been timed on a GPU yet: those of 2 bytes for capability 9.0 are the best by a model of their machine code
(benchmarks/results/model.md), which errs by 10 %. `vidsparse bench --tune` measures and prints new rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from vidsparse_kernels.available import gluon_lacks

Kernel = Literal["forward", "query_gradient", "key_gradient"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


@dataclass(frozen=True)
class Config:
    """How a kernel is launched.

    Attributes:
        step: tokens of the box that one step of the walk reads.
        warps: of a program. stages: of its pipeline.
        registers: most registers of a thread, so that two programs share a multiprocessor; None: as many as it takes.
    """

    step: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch options."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}

    def __str__(self) -> str:
        return "/".join(str(x) for x in (self.step, self.warps, self.stages, self.registers) if x is not None)


@dataclass(frozen=True)
class GluonConfig:
    """How the forward kernel in Gluon is launched.

    Attributes:
        step: tokens of the box that one step of the walk reads, 64 or 128.
        stages: how many boxes of keys, and of values, fit into shared memory at once; at least 2.
        turns: whether the two computing groups take turns at the matrix unit, instead of as they come.
    """

    step: int
    stages: int
    turns: bool = False

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch options: the warps of one group, to which the kernel adds the others."""
        return {"num_warps": 4}

    def __str__(self) -> str:
        return f"gluon/{self.step}/{self.stages}{'/turns' if self.turns else ''}"

    @classmethod
    def parse(cls, text: str) -> GluonConfig:
        """Read what one prints: "gluon/step/stages" or "gluon/step/stages/turns".

        Raises:
            ValueError: what is not one.
        """
        name, step, stages, *turns = text.split("/")
        if name != "gluon" or turns not in ([], ["turns"]):
            raise ValueError(f"{text!r} is not gluon/step/stages[/turns]")
        return cls(int(step), int(stages), bool(turns))


# Chips whose kernels need the same: the most shared memory that a program may have, in bytes.
SHARED_MEMORY = {80: 166912, 89: 101376, 90: 232448, 100: 232448}

# (chips, kernel) -> (bytes of a number, head_dim) -> a program that holds a tile of 64 tokens, and one of 128, or None
# where that does not fit the chip. float32 without TF32 has no matrix unit: slow, for comparing.
TABLE: dict[tuple[int, Kernel], dict[tuple[int, int], tuple[Config | None, Config | None]]] = {
    (80, "forward"): {
        (2, 64): (Config(64, 4, 2), Config(64, 8, 3)),
        (2, 128): (Config(64, 8, 3), Config(32, 8, 3)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (80, "query_gradient"): {
        (2, 64): (Config(32, 4, 2), Config(64, 8, 3)),
        (2, 128): (Config(64, 8, 2), Config(32, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (80, "key_gradient"): {
        (2, 64): (Config(32, 8, 2), Config(32, 8, 2)),
        (2, 128): (Config(64, 8, 2), Config(16, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (89, "forward"): {
        (2, 64): (Config(64, 4, 2), Config(64, 8, 3)),
        (2, 128): (Config(64, 8, 3), Config(32, 8, 3)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (89, "query_gradient"): {
        (2, 64): (Config(64, 8, 2), Config(64, 8, 3)),
        (2, 128): (Config(64, 8, 2), Config(32, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), None),
    },
    (89, "key_gradient"): {
        (2, 64): (Config(32, 8, 2), Config(32, 8, 2)),
        (2, 128): (Config(64, 8, 2), Config(16, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), None),
    },
    (90, "forward"): {
        (2, 64): (Config(64, 4, 2, 128), Config(128, 8, 2, 128)),
        (2, 128): (Config(64, 4, 2), Config(64, 8, 2, 128)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (90, "query_gradient"): {
        (2, 64): (Config(64, 4, 2), Config(64, 8, 3, 128)),
        (2, 128): (Config(64, 4, 2), Config(64, 8, 3)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (90, "key_gradient"): {
        (2, 64): (Config(64, 4, 3, 168), Config(64, 8, 2)),
        (2, 128): (Config(64, 4, 2), Config(64, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (100, "forward"): {
        (2, 64): (Config(64, 4, 2), Config(128, 8, 3)),
        (2, 128): (Config(64, 4, 2), Config(128, 8, 3)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (100, "query_gradient"): {
        (2, 64): (Config(64, 4, 2), Config(64, 8, 3)),
        (2, 128): (Config(64, 4, 2), Config(64, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
    (100, "key_gradient"): {
        (2, 64): (Config(64, 4, 2), Config(64, 8, 2)),
        (2, 128): (Config(64, 4, 2), Config(64, 8, 2)),
        (4, 64): (Config(16, 4, 1), Config(16, 8, 1)),
        (4, 128): (Config(16, 4, 1), Config(16, 8, 1)),
    },
}

# head_dim -> the forward kernel in Gluon, for chips of the family 90, tiles of 128 tokens and numbers of 2 bytes: only
# where a GPU has measured that it is faster than the row of TABLE, which takes all other calls.
GLUON: dict[int, GluonConfig] = {}

# What fits the chip, for measuring.
GLUON_CANDIDATES = {
    64: (GluonConfig(128, 4), GluonConfig(128, 2), GluonConfig(128, 4, turns=True), GluonConfig(64, 4)),
    128: (GluonConfig(128, 2), GluonConfig(64, 4), GluonConfig(128, 2, turns=True), GluonConfig(64, 4, turns=True)),
}


def family(capability: int) -> int:
    """The chips of the table that a compute capability (90 for 9.0) belongs to."""
    if capability in (80, 87):
        return 80
    if 90 <= capability < 100:
        return 90
    # 8.6, 8.9, 11.x, 12.x, and what is yet to come: what has the least shared memory runs everywhere.
    return 100 if 100 <= capability < 110 else 89


def choose(capability: int, kernel: Kernel, itemsize: int, head_dim: int, held: int) -> Config | None:
    """The configuration of the nearest row: the same chips and size of numbers, the next head_dim that is no less.

    None if a program of this kernel does not fit the chip.

    Args:
        capability: 90 for compute capability 9.0.
        kernel: which kernel.
        itemsize: bytes of a number, 2 or 4.
        head_dim: channels of a head, at most 128.
        held: tokens of the tile that a program holds, 64 or 128: queries in forward and query_gradient, keys in
            key_gradient.
    """
    tried = _TRIED.get(kernel)
    if isinstance(tried, Config):
        return tried
    rows = TABLE[family(capability), kernel]
    nearest = min(dim for size, dim in rows if size == itemsize and dim >= head_dim)
    return rows[itemsize, nearest][held > 64]


def choose_gluon(capability: int, itemsize: int, head_dim: int, held: int) -> GluonConfig | None:
    """How to launch the forward kernel in Gluon, None where the one in Triton is to run; arguments as for `choose`."""
    tried = _TRIED.get("forward")
    if tried is not None:
        return tried if isinstance(tried, GluonConfig) else None
    if family(capability) != 90 or (itemsize, held) != (2, 128) or head_dim not in GLUON or gluon_lacks() is not None:
        return None
    return GLUON[head_dim]


_TRIED: dict[str, Config | GluonConfig] = {}


@contextmanager
def trying(kernel: str, config: Config | GluonConfig) -> Iterator[None]:
    """Launch `kernel` with this configuration, whatever the tables say: for measuring.

    A GluonConfig is one of "forward" alone; what its kernel does not take raises NotImplementedError.
    """
    if isinstance(config, GluonConfig):
        if kernel != "forward":
            raise ValueError(f"{kernel!r} has no kernel in Gluon, only 'forward' has: pass a Config")
        if (reason := gluon_lacks()) is not None:
            raise NotImplementedError(f"the forward in Gluon {reason}")
    _TRIED[kernel] = config
    try:
        yield
    finally:
        del _TRIED[kernel]
