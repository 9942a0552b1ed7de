"""Statements of PTX as the numbers that `instructions.cpp` executes: handlers, guards, operands, constants."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from emulator import core
from emulator.ptx import Kernel, Statement

SHARED, PARAMETERS = 1024, 1 << 56  # as in machine.h
BYTES = {"pred": 0, "b8": 1, "u8": 1, "s8": 1, "f16": 2, "bf16": 2, "bf16x2": 4, "f16x2": 4, "f32x2": 8}
BYTES |= {f"{kind}{8 * size}": size for kind in "bus" for size in (2, 4, 8)} | {"f32": 4, "f64": 8}
SPECIAL = [
    *("%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"),
    *("%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid"),
]
# What makes no difference here: scopes and caches; subnormal numbers are kept, functions of the chip are exact.
IGNORED = {"ftz", "approx", "full", "sync", "aligned", "uni", "relaxed", "acquire", "release", "cta", "gpu", "nc", "volatile"}
NO_EFFECT = ("fence.mbarrier_init", "fence.acq_rel", "wgmma.fence", "setmaxnreg", "bar.warp", "griddepcontrol", "membar")


def plain_name(name: str) -> str:
    """An instruction's name without what makes no difference here."""
    words = [word.partition("::")[0] for word in name.split(".")]
    base = words[0]
    kept = {"sync"} if base in ("bar", "barrier") else set()
    words = [word for word in words if word in kept or word not in IGNORED and not re.fullmatch(r"L1|L2|evict_\w+", word)]
    if base in ("add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "cvt"):
        words = [word for word in words if word != "rn"]
    if base in ("mul", "mad"):
        words = [word for word in words if word != "lo"]
    return "nop" if ".".join(words).startswith(NO_EFFECT) else ".".join(words)


class Code:
    """A kernel, encoded.

    Attributes:
        kernel: what it was made from.
        instructions: int32 [n, 4]: handler, guard or -1, whether it is negated, first operand.
        operands: int64. constants: structured as `core.CONSTANT`.
        register_bytes: of a warp.

    Raises:
        NotImplementedError: instructions that the emulator does not know.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._offsets: dict[object, int] = {}
        self._constants: list[tuple[int, int, int]] = []
        self._code: list[tuple[int, int, int, int]] = []
        self._operands: list[int] = []
        self._branches: list[tuple[int, int]] = []  # an operand, and the statement that it names
        self._starts: list[int] = []  # of each statement, its first instruction
        self.statement_of: list[int] = []  # of each instruction
        self.register_bytes = 0
        unknown: dict[str, None] = {}
        for statement in kernel.statements:
            self._starts.append(len(self._code))
            try:
                self._encode(statement)
            except (KeyError, ValueError, IndexError):
                unknown[kernel.place(len(self._starts) - 1)] = None
        if unknown:
            raise NotImplementedError(
                f"{kernel.name} has instructions that the emulator does not know: {'; '.join([*unknown][:5])}. "
                "Add them to tests/emulator/instructions.cpp and encode.py"
            )
        for operand, target in self._branches:
            self._operands[operand] = self._starts[target] if target < len(self._starts) else len(self._code)
        self.instructions = np.array(self._code, dtype=np.int32)
        self.operands = np.array(self._operands, dtype=np.int64)
        self.constants = np.array(self._constants, dtype=core.CONSTANT)

    # Registers

    def _type(self, name: str, scopes: Sequence[int]) -> tuple[object, str]:
        prefix = name.rstrip("0123456789")
        for scope in reversed(scopes):
            for known in (name, prefix):
                if (scope, known) in self.kernel.registers:
                    return (scope, name), self.kernel.registers[scope, known]
        raise KeyError(name)

    def _new(self, key: object, size: int) -> int:
        if key not in self._offsets:
            self._offsets[key] = self.register_bytes
            self.register_bytes += 32 * size or 32  # a predicate is a mask of 4 bytes, and keeps the alignment
        return self._offsets[key]

    def _constant(self, value: int, size: int) -> int:
        value = (2**32 - 1 if value else 0) if size == 0 else value % 2 ** (8 * size)
        key = "constant", value, size
        if key not in self._offsets:
            self._constants.append((self._new(key, size), size, value))
        return self._offsets[key]

    def _size(self, name: str, scopes: Sequence[int]) -> int | None:
        """Bytes of a register; None if `name` is none."""
        try:
            return BYTES[self._type(name, scopes)[1]]
        except KeyError:
            return None

    def _operand(self, text: str, size: int, scopes: Sequence[int]) -> int:
        """The register of an operand, or of the constant that it is, of `size` bytes."""
        if text == "_":
            return self._new("_", 8)
        if text == "global_smem":
            return self._constant(SHARED, size)
        if text in self.kernel.parameters:
            return self._constant(PARAMETERS + self.kernel.parameters[text].offset, size)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return self._constant(int(text.rstrip("U"), 0), size)
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
            return self._constant(int(text[2:], 16), size)
        key, kind = self._type(text, scopes)
        if BYTES[kind] != size:
            raise ValueError(f"{text} has {BYTES[kind]} bytes, not {size}")
        return self._new(key, size)

    def _address(self, text: str, scopes: Sequence[int]) -> list[int]:
        """{register, bytes, offset} of `[register + offset]`."""
        found = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if found is None:
            raise ValueError(text)
        size = self._size(found[1], scopes)
        size = size or (8 if found[1] in self.kernel.parameters else 4)
        return [self._operand(found[1], size, scopes), size, int(found[2] or "0", 0)]

    # Statements

    def _emit(self, statement: Statement, name: str, *operands: int) -> None:
        handler = core.find(name)
        if handler < 0:
            raise ValueError(name)
        guard, negated = -1, 0
        if statement.guard:
            negated = int(statement.guard.startswith("!"))
            guard = self._operand(statement.guard.lstrip("!"), 0, statement.scopes)
        self.statement_of.append(len(self._starts) - 1)
        self._code.append((handler, guard, negated, len(self._operands)))
        self._operands += operands

    def _encode(self, statement: Statement) -> None:
        name = plain_name(statement.name)
        for prefix, special in FORMS.items():
            if name.startswith(prefix):
                return special(self, statement, name)
        words = name.split(".")
        sizes = [BYTES[words[-1]]] * len(statement.operands)
        if words[0] in ("shl", "shr"):
            sizes[2] = 4
        elif words[0] in ("popc", "clz"):
            sizes[0] = 4
        elif name.startswith(("mul.wide", "mad.wide")):
            sizes[0] *= 2
            sizes[3:] = sizes[:1] * len(sizes[3:])
        elif words[0] == "bfe":
            sizes[2:] = 4, 4
        elif words[0] == "setp":
            sizes[0] = 0
        elif words[0] == "selp":
            sizes[3], name = 0, f"selp.b{8 * sizes[0]}"
        operands = [self._operand(x, n, statement.scopes) for x, n in zip(statement.operands, sizes, strict=True)]
        self._emit(statement, name, *operands)


Form = Callable[[Code, Statement, str], None]


def _vector(text: str) -> list[str]:
    return [x.strip() for x in text.strip("{} ").split(",")]


def _load_store(code: Code, statement: Statement, name: str) -> None:
    """`ld.space.v4.b32 {registers}, [address]` and `st.space.b32 [address], register`."""
    words = [word for word in name.split(".") if word not in ("v2", "v4", "v8")]
    where, what = statement.operands if words[0] == "st" else statement.operands[::-1]
    values = _vector(what)
    size = next((n for x in values if (n := code._size(x, statement.scopes))), BYTES[words[-1]])
    registers = [code._operand(x, size, statement.scopes) for x in values]
    code._emit(statement, ".".join(words), *code._address(where, statement.scopes), size, len(values), *registers)


def _move(code: Code, statement: Statement, name: str) -> None:
    """`mov` of a register, of a vector into a register and back, of a special register."""
    to, source = statement.operands
    size = BYTES[name.split(".")[-1]]
    if source in SPECIAL:
        code._emit(statement, "mov.special", code._operand(to, 4, statement.scopes), SPECIAL.index(source))
    elif to.startswith("{") or source.startswith("{"):
        parts, whole = (to, source) if to.startswith("{") else (source, to)
        apart = _vector(parts)
        part = size // len(apart)
        operands = [code._operand(whole, size, statement.scopes), *(code._operand(x, part, statement.scopes) for x in apart)]
        code._emit(statement, "unpack" if to.startswith("{") else "pack", part, len(apart), *operands)
    else:
        name = f"mov.b{8 * size}" if size else "mov.pred"
        code._emit(statement, name, *(code._operand(x, size, statement.scopes) for x in (to, source)))


def _address_space(code: Code, statement: Statement, name: str) -> None:
    """`cvta`: addresses of all spaces are apart here."""
    code._emit(statement, "mov.b64", *(code._operand(x, 8, statement.scopes) for x in statement.operands))


def _convert(code: Code, statement: Statement, name: str) -> None:
    words = name.split(".")
    if len(statement.operands) == 3:
        sizes = 4, 4, 4
        operands = [code._operand(x, n, statement.scopes) for x, n in zip(statement.operands, sizes, strict=True)]
        return code._emit(statement, name, *operands)
    operands = []
    for text, kind in zip(statement.operands, words[-2:], strict=True):
        size = code._size(text, statement.scopes) or BYTES[kind]
        operands += [code._operand(text, size, statement.scopes), size]
    code._emit(statement, name, *operands)


def _shuffle(code: Code, statement: Statement, name: str) -> None:
    """`shfl.mode.b32 d|p, a, b, c, lanes`."""
    to, _, there = statement.operands[0].partition("|")
    registers = [code._operand(x, 4, statement.scopes) for x in (to, *statement.operands[1:4])]
    inside = code._operand(there, 0, statement.scopes) if there else code._new("_", 8)
    code._emit(statement, name, registers[0], inside, *registers[1:])


def _elect(code: Code, statement: Statement, name: str) -> None:
    to, _, chosen = statement.operands[0].partition("|")
    code._emit(statement, name, code._operand(to, 4, statement.scopes), code._operand(chosen, 0, statement.scopes))


def _vote(code: Code, statement: Statement, name: str) -> None:
    size = 4 if name.endswith("b32") else 0
    operands = code._operand(statement.operands[0], size, statement.scopes), code._operand(statement.operands[1], 0, statement.scopes)
    code._emit(statement, name, *operands)


def _reduce(code: Code, statement: Statement, name: str) -> None:
    code._emit(statement, name, *(code._operand(x, 4, statement.scopes) for x in statement.operands[:2]))


def _copy(code: Code, statement: Statement, name: str) -> None:
    """`cp.async.cg.shared.global [to], [from], bytes{, valid bytes}`."""
    to, source, size, *valid = statement.operands
    addresses = [*code._address(to, statement.scopes), *code._address(source, statement.scopes)]
    valid_register = code._operand(valid[0], 4, statement.scopes) if valid else -1
    code._emit(statement, "cp.async", *addresses, int(size, 0), valid_register)


def _counted(code: Code, statement: Statement, name: str) -> None:
    """`cp.async.wait_group n` and the like."""
    name = name.removesuffix(".read")
    if name == "cp.async.wait_all":
        code._emit(statement, "cp.async.commit_group")
        return code._emit(statement, "cp.async.wait_group", 0)
    code._emit(statement, name, *(int(x, 0) for x in statement.operands))


def _box(code: Code, statement: Statement, name: str) -> None:
    """`cp.async.bulk.tensor.5d.shared.global.mbarrier [to], [map, {coordinates}], [mbarrier]`, or a store: `[map, {}], [from]`."""
    loads = ".shared.global" in name
    if not loads and ".global.shared" not in name or len(statement.operands) != (3 if loads else 2):
        raise ValueError(name)
    place = statement.operands[1 if loads else 0]
    found = re.fullmatch(r"\[\s*(\S+?)\s*,\s*(\{.*\})\s*\]", place)
    if found is None:
        raise ValueError(place)
    shared = code._address(statement.operands[0 if loads else 1], statement.scopes)
    barrier = code._address(statement.operands[2], statement.scopes) if loads else [0, 0, 0]
    coordinates = [code._operand(x, 4, statement.scopes) for x in _vector(found[2])]
    the_map = code._address(f"[{found[1]}]", statement.scopes)
    kind = "load" if loads else "store"
    code._emit(statement, f"cp.async.bulk.tensor.{kind}", *shared, *the_map, *barrier, len(coordinates), *coordinates)


def _matrices(code: Code, statement: Statement, name: str) -> None:
    """`ldmatrix.m8n8.x4{.trans}.shared.b16 {registers}, [address]`, and `stmatrix` the other way round."""
    words = name.split(".")
    if "m8n8" not in words or words[-1] != "b16":
        raise ValueError(name)
    where, what = statement.operands if words[0] == "stmatrix" else statement.operands[::-1]
    registers = [code._operand(x, 4, statement.scopes) for x in _vector(what)]
    code._emit(statement, words[0], *code._address(where, statement.scopes), int("trans" in words), len(registers), *registers)


def _mbarrier(code: Code, statement: Statement, name: str) -> None:
    words = [word for word in name.split(".") if word not in ("shared", "b64")]
    kind, operands, scopes = ".".join(words), statement.operands, statement.scopes
    if kind == "mbarrier.init":
        code._emit(statement, kind, *code._address(operands[0], scopes), int(operands[1], 0))
    elif kind == "mbarrier.inval":
        code._emit(statement, kind, *code._address(operands[0], scopes))
    elif kind == "mbarrier.arrive.expect_tx":
        code._emit(statement, "mbarrier.arrive", *code._address(operands[1], scopes), 1, int(operands[2], 0))
    elif kind == "mbarrier.arrive":
        arrivals = int(operands[2], 0) if len(operands) > 2 else 1
        code._emit(statement, kind, *code._address(operands[1], scopes), arrivals, 0)
    elif kind == "mbarrier.try_wait.parity":
        done, parity = code._operand(operands[0], 0, scopes), code._operand(operands[2], 4, scopes)
        code._emit(statement, kind, *code._address(operands[1], scopes), done, parity)
    else:
        raise ValueError(name)


def _barrier(code: Code, statement: Statement, name: str) -> None:
    """`bar.sync id{, threads}`, `barrier.sync`, `bar.arrive`."""
    numbers = [code._operand(x, 4, statement.scopes) for x in statement.operands]
    code._emit(statement, name.replace("barrier.", "bar."), *(numbers if len(numbers) > 1 else [*numbers, -1]))


def _warpgroup_product(code: Code, statement: Statement, name: str) -> None:
    """`wgmma.mma_async.m64n128k16.f32.bf16.bf16 {D}, A or {A}, B, accumulate, 1, 1{, A transposed}, B transposed`."""
    shape = re.search(r"\.m64n(\d+)(k\d+)", name)
    if shape is None:
        raise ValueError(name)
    d, a, b, accumulate, *flags = statement.operands
    registers, scopes = a.startswith("{"), statement.scopes
    signs, (transposed_a, transposed_b) = flags[:2], [0] * registers + [int(x) for x in flags[2:]]
    if signs != ["1", "1"]:
        raise ValueError("a negated operand")
    width = int(shape[1])
    first = [code._operand(x, 4, scopes) for x in _vector(a)] if registers else [code._operand(a, 8, scopes)]
    if registers and len(first) != 4:
        raise ValueError(a)
    results = [code._operand(x, 4, scopes) for x in _vector(d)]
    if len(results) != width // 2:
        raise ValueError(d)
    operands = code._operand(accumulate, 0, scopes), code._operand(b, 8, scopes)
    name = name.replace(shape[0], f".{shape[2]}")
    code._emit(statement, name, width, int(registers), transposed_a, transposed_b, *operands, *first, *results)


def _product(code: Code, statement: Statement, name: str) -> None:
    code._emit(statement, name, *(code._operand(x, 4, statement.scopes) for part in statement.operands for x in _vector(part)))


def _branch(code: Code, statement: Statement, name: str) -> None:
    code._branches.append((len(code._operands), _target(code, statement.operands[0], statement.scopes)))
    code._emit(statement, "bra", 0)


def _table(code: Code, statement: Statement, name: str) -> None:
    index, label = statement.operands
    targets = next(code.kernel.tables[scope, label] for scope in reversed(statement.scopes) if (scope, label) in code.kernel.tables)
    for i, target in enumerate(targets):
        code._branches.append((len(code._operands) + 2 + i, _target(code, target, statement.scopes)))
    code._emit(statement, "brx.idx", code._operand(index, 4, statement.scopes), len(targets), *[0] * len(targets))


def _target(code: Code, label: str, scopes: Sequence[int]) -> int:
    return next(code.kernel.labels[scope, label] for scope in reversed(scopes) if (scope, label) in code.kernel.labels)


def _bare(code: Code, statement: Statement, name: str) -> None:
    code._emit(statement, {"exit": "ret", "fence.proxy.async.shared": "fence.proxy.async"}.get(name, name))


# By how their plain names begin, the longest first.
FORMS: dict[str, Form] = {
    **dict.fromkeys(("ld.", "st."), _load_store),
    "mov.": _move,
    "cvta.": _address_space,
    "cvt.": _convert,
    "shfl.": _shuffle,
    "elect": _elect,
    "vote.": _vote,
    "redux.": _reduce,
    "cp.async.bulk.tensor.": _box,
    **dict.fromkeys(("cp.async.bulk.commit_group", "cp.async.bulk.wait_group"), _counted),
    **dict.fromkeys(("cp.async.commit_group", "cp.async.wait_group", "cp.async.wait_all"), _counted),
    **dict.fromkeys(("cp.async.ca.shared.global", "cp.async.cg.shared.global"), _copy),
    **dict.fromkeys(("ldmatrix.", "stmatrix."), _matrices),
    "mbarrier.": _mbarrier,
    **dict.fromkeys(("bar.sync", "barrier.sync", "bar.arrive", "barrier.arrive"), _barrier),
    "wgmma.mma_async.": _warpgroup_product,
    **dict.fromkeys(("wgmma.commit_group", "wgmma.wait_group"), _counted),
    "mma.": _product,
    "brx.idx": _table,
    "bra": _branch,
    **dict.fromkeys(("ret", "exit", "trap", "nop", "fence.proxy.async"), _bare),
}
