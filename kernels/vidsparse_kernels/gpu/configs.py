"""How each kernel is launched: a literal table, and the rule that finds the nearest row for any call.

Every row fits the chip's shared memory with Triton 3.6 and 3.7; benchmarks/results/aot.md lists those that spill. None
has been timed on a GPU yet: those of 2 bytes for capability 9.0 are the best by a model of their machine code
(benchmarks/results/model.md), which is off by 10 %. `vidsparse bench --tune` measures and prints new rows.
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
        warps: of a program.
        stages: of its pipeline.
        registers: limit per thread, so that two programs share a multiprocessor; None: no limit.
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
        stages: boxes of keys, and as many of values, that shared memory holds at once; at least 2.
        turns: whether the two computing groups take turns at the matrix unit; otherwise the first to arrive uses it.
    """

    step: int
    stages: int
    turns: bool = False

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch options: the warps of one group; the kernel adds the others."""
        return {"num_warps": 4}

    def __str__(self) -> str:
        return f"gluon/{self.step}/{self.stages}{'/turns' if self.turns else ''}"

    @classmethod
    def parse(cls, text: str) -> GluonConfig:
        """Parse the text form: "gluon/step/stages" or "gluon/step/stages/turns".

        Raises:
            ValueError: any other text.
        """
        name, step, stages, *turns = text.split("/")
        if name != "gluon" or turns not in ([], ["turns"]):
            raise ValueError(f"{text!r} is not gluon/step/stages[/turns]")
        return cls(int(step), int(stages), bool(turns))


# Family of chips -> the shared memory that a program may use, in bytes.
SHARED_MEMORY = {80: 166912, 89: 101376, 90: 232448, 100: 232448}

# (family, kernel) -> (bytes per number, head_dim) -> the configuration of a program that holds a tile of 64 tokens, and
# of 128; None where it does not fit the chip. float32 without TF32 has no matrix unit: slow, for comparison only.
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

# head_dim -> the forward kernel in Gluon, for family 90, tiles of 128 tokens and numbers of 2 bytes. Only entries that
# were measured on a GPU as faster than the row of TABLE, which takes all other calls.
GLUON: dict[int, GluonConfig] = {}

# Configurations that fit the chip, to be measured.
GLUON_CANDIDATES = {
    64: (GluonConfig(128, 4), GluonConfig(128, 2), GluonConfig(128, 4, turns=True), GluonConfig(64, 4)),
    128: (GluonConfig(128, 2), GluonConfig(64, 4), GluonConfig(128, 2, turns=True), GluonConfig(64, 4, turns=True)),
}


def family(capability: int) -> int:
    """The family of the table that a compute capability (90 for 9.0) belongs to."""
    if capability in (80, 87):
        return 80
    if 90 <= capability < 100:
        return 90
    # 8.6, 8.9, 11.x, 12.x and future chips: the configurations with the least shared memory run everywhere.
    return 100 if 100 <= capability < 110 else 89


def choose(capability: int, kernel: Kernel, itemsize: int, head_dim: int, held: int) -> Config | None:
    """The configuration of the nearest row: the same family and bytes per number, the next head_dim not below this one.

    Returns None if a program of this kernel does not fit the chip.

    Args:
        capability: 90 for compute capability 9.0.
        kernel: which kernel.
        itemsize: bytes per number, 2 or 4.
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
    """The configuration of the forward kernel in Gluon; None if the one in Triton runs. Arguments as for `choose`."""
    tried = _TRIED.get("forward")
    if tried is not None:
        return tried if isinstance(tried, GluonConfig) else None
    if family(capability) != 90 or (itemsize, held) != (2, 128) or head_dim not in GLUON or gluon_lacks() is not None:
        return None
    return GLUON[head_dim]


_TRIED: dict[str, Config | GluonConfig] = {}


@contextmanager
def trying(kernel: str, config: Config | GluonConfig) -> Iterator[None]:
    """Within the context, launch `kernel` with this configuration instead of the tables'. For measuring.

    Raises:
        ValueError: a GluonConfig for another kernel than "forward".
        NotImplementedError: Gluon is missing; launches also raise it for calls that its kernel does not take.
    """
    if isinstance(config, GluonConfig):
        if kernel != "forward":
            raise ValueError(f"{kernel!r} has no kernel in Gluon, only 'forward' has one; pass a Config")
        if (reason := gluon_lacks()) is not None:
            raise NotImplementedError(f"the forward in Gluon {reason}")
    _TRIED[kernel] = config
    try:
        yield
    finally:
        del _TRIED[kernel]
