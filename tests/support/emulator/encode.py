"""A kernel's statements as the numbers that `instructions.cpp` executes: handlers, guards, operands, constants."""

from __future__ import annotations

import re
from typing import TypeVar

import numpy as np

from emulator import core
from emulator.ptx import Kernel, Statement

T = TypeVar("T")

SHARED, PARAMETERS = 1024, 1 << 56  # where these spaces begin among all addresses, as in machine.h
BYTES = {"pred": 0, "b8": 1, "u8": 1, "s8": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
BYTES |= {"f16x2": 4, "bf16x2": 4, "f32x2": 8}
BYTES |= {f"{kind}{8 * size}": size for kind in "bus" for size in (2, 4, 8)}
# What makes no difference here: scopes and caches; subnormal numbers are kept, the chip's functions are exact.
IGNORED = {"aligned", "sync", "uni", "approx", "full", "ftz"}
IGNORED |= {"relaxed", "acquire", "release", "cta", "gpu", "nc", "volatile"}
IGNORED_OF = {base: {"rn"} for base in ("add", "sub", "fma", "div", "rcp", "sqrt", "cvt")}
IGNORED_OF |= {base: {"rn", "lo"} for base in ("mul", "mad")}
CACHES = re.compile(r"(L1|L2|level)::")
NO_EFFECT = re.compile(
    r"fence\.(mbarrier_init|acq_rel)|wgmma\.fence|setmaxnreg|bar\.warp|griddepcontrol|membar|prefetch\.tensormap"
)


def plain_name(name: str) -> str:
    """An instruction's name without what makes no difference here; "nop" if nothing is left."""
    base, *words = (word.partition("::")[0] for word in name.split(".") if not CACHES.match(word))
    ignored = (IGNORED | IGNORED_OF.get(base, set())) - ({"sync"} if base in ("bar", "barrier") else set())
    plain = ".".join([base, *(word for word in words if word not in ignored)])
    return "nop" if NO_EFFECT.match(plain) else plain


class Code:
    """A kernel, encoded.

    Attributes:
        kernel: what it was made from.
        instructions: int32 [n, 4]: handler, guard or -1, whether it is negated, first operand.
        operands: int64. constants: `core.CONSTANT`.
        register_bytes: of a warp.

    Raises:
        NotImplementedError: instructions that the emulator does not know, with their lines.
    """

    def __init__(self, kernel: Kernel) -> None:
        from emulator.forms import encode

        self.kernel, self.register_bytes = kernel, 0
        self._offsets: dict[object, int] = {}
        self._constants: list[tuple[int, int, int]] = []
        self._code: list[tuple[int, int, int, int]] = []
        self._operands: list[int] = []
        self._branches: list[tuple[int, int]] = []  # an operand, and the statement that it names
        self._statements: list[int] = []  # of each instruction
        first: list[int] = []  # instruction of each statement
        unknown: list[str] = []
        for number, statement in enumerate(kernel.statements):
            first.append(len(self._code))
            try:
                encode(Line(self, statement))
            except (KeyError, ValueError, IndexError):
                unknown.append(kernel.place(number))
            self._statements += [number] * (len(self._code) - first[-1])
        if unknown:
            raise NotImplementedError(
                f"{kernel.name} has instructions that the emulator does not know: {'; '.join(dict.fromkeys(unknown))}; "
                "teach it in tests/support/emulator, instructions.cpp and forms.py"
            )
        for operand, target in self._branches:
            self._operands[operand] = first[target] if target < len(first) else len(self._code)
        self.instructions = np.array(self._code, dtype=np.int32)
        self.operands = np.array(self._operands, dtype=np.int64)
        self.constants = np.array(self._constants, dtype=core.CONSTANT)

    def place(self, instruction: int) -> str:
        """The statement that an instruction comes from, with its line."""
        return self.kernel.place(self._statements[instruction])

    def register(self, key: object, size: int) -> int:
        """Where a register of 32 lanes of `size` bytes is, or a predicate (size 0), which is a mask of 4 bytes."""
        if key not in self._offsets:
            self._offsets[key] = self.register_bytes
            self.register_bytes += 32 * max(size, 1)
        return self._offsets[key]

    def constant(self, value: int, size: int) -> int:
        """A register that holds this value in every lane."""
        value = value % 2 ** (8 * size) if size else (2**32 - 1) * bool(value)
        key = "constant", value, size
        if key not in self._offsets:
            self._constants.append((self.register(key, size), size, value))
        return self._offsets[key]


class Line:
    """One statement while it is encoded: its plain name, its operands, and what they are in its scopes."""

    def __init__(self, code: Code, statement: Statement) -> None:
        self.code, self.statement = code, statement
        self.name, self.operands = plain_name(statement.name), statement.operands

    def _declared(self, name: str) -> tuple[int, str] | None:
        """The scope and the type of a register."""
        prefix = name.rstrip("0123456789")
        for scope in reversed(self.statement.scopes):
            for known in (name, prefix):
                if kind := self.code.kernel.registers.get((scope, known)):
                    return scope, kind
        return None

    def size(self, text: str) -> int | None:
        """Bytes of a register; None if the operand is none."""
        declared = self._declared(text)
        return None if declared is None else BYTES[declared[1]]

    def register(self, text: str, size: int) -> int:
        """The register of an operand of `size` bytes, or of the constant that it is.

        Raises:
            ValueError: an operand that is neither, or has another size.
        """
        if text == "_":
            return self.code.register("_", 8)
        if text == "global_smem":
            return self.code.constant(SHARED, size)
        if text in self.code.kernel.parameters:
            return self.code.constant(self.code.kernel.parameters[text].offset, size)
        if number := re.fullmatch(r"(-?(?:0[xX][0-9a-fA-F]+|\d+))U?", text):
            return self.code.constant(int(number[1], 0), size)
        if number := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            return self.code.constant(int(number[1], 16), size)
        declared = self._declared(text)
        if declared is None or BYTES[declared[1]] != size:
            raise ValueError(f"{text} is no register of {size} bytes")
        return self.code.register((declared[0], text), size)

    def registers(self, text: str, size: int) -> list[int]:
        """The registers of a vector `{a, b}`, or of a single operand."""
        return [self.register(x, size) for x in vector(text)]

    def address(self, text: str) -> list[int]:
        """Register, its bytes and the offset of `[register + offset]`."""
        found = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if found is None:
            raise ValueError(text)
        size = self.size(found[1]) or (8 if found[1] in self.code.kernel.parameters else 4)
        return [self.register(found[1], size), size, int(found[2] or "0", 0)]

    def instruction(self, label: str) -> int:
        """The statement that a label stands before."""
        return self._found(self.code.kernel.labels, label)

    def table(self, label: str) -> list[int]:
        """The statements that a table of branches names."""
        return [self.instruction(x) for x in self._found(self.code.kernel.tables, label)]

    def _found(self, names: dict[tuple[int, str], T], name: str) -> T:
        return [names[scope, name] for scope in self.statement.scopes if (scope, name) in names][-1]

    def emit(self, name: str, *operands: int, branches: tuple[int, ...] = ()) -> None:
        """Append an instruction; `branches` are statements, operands that follow the others.

        Raises:
            ValueError: the core does not know it.
        """
        handler = core.find(name)
        if handler < 0:
            raise ValueError(name)
        guard, code = self.statement.guard, self.code
        predicate = self.register(guard.lstrip("!"), 0) if guard else -1
        code._code.append((handler, predicate, int(guard.startswith("!")), len(code._operands)))
        code._operands += operands
        code._branches += [(len(code._operands) + i, target) for i, target in enumerate(branches)]
        code._operands += branches


def vector(text: str) -> list[str]:
    """The parts of `{a, b}`; of anything else, itself."""
    return [x.strip() for x in text.strip("{} ").split(",")]
