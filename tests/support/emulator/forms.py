"""How the operands of each instruction are written in PTX, and in which order `instructions.cpp` takes them."""

from __future__ import annotations

import re
from collections.abc import Callable

from emulator.encode import BYTES, PARAMETERS, Line, vector

SPECIAL = [
    *("%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"),
    *("%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid"),
]
# Instructions of registers alone, whose operands have not all the size of their type: bytes of each operand.
SIZES: dict[str, Callable[[int], tuple[int, ...]]] = {
    r"(shl|shr)\.\w(\d+)": lambda size: (size, size, 4),
    r"(popc|clz)\.b(\d+)": lambda size: (4, size),
    r"(mul)\.wide\.\w(\d+)": lambda size: (2 * size, size, size),
    r"(mad)\.wide\.\w(\d+)": lambda size: (2 * size, size, size, 2 * size),
    r"(bfe)\.\w(\d+)": lambda size: (size, size, 4, 4),
    r"(fma)\.f32\.b?f(\d+)": lambda size: (4, size, size, 4),
    r"(add|sub)\.f32\.b?f(\d+)": lambda size: (4, size, 4),
    r"(setp)\.\w+\.\w(\d+)": lambda size: (0, size, size),
}


def encode(line: Line) -> None:
    """Append a statement's instruction to its code.

    Raises:
        KeyError, ValueError, IndexError: a statement that the emulator does not know.
    """
    form = next((form for prefix, form in FORMS.items() if line.name.startswith(prefix)), _registers)
    form(line)


def _registers(line: Line) -> None:
    operands = line.operands
    sizes: tuple[int, ...] = (BYTES[line.name.split(".")[-1]],) * len(operands)
    for pattern, of in SIZES.items():
        if found := re.fullmatch(pattern, line.name):
            sizes = of(int(found[2]) // 8)
    line.emit(line.name, *(line.register(x, size) for x, size in zip(operands, sizes, strict=True)))


def _select(line: Line) -> None:
    """selp.type d, a, b, p"""
    size = BYTES[line.name.split(".")[-1]]
    line.emit(
        f"selp.b{8 * size}", *(line.register(x, size) for x in line.operands[:3]), line.register(line.operands[3], 0)
    )


def _lanes(line: Line) -> None:
    """shfl.mode.b32 d|p, a, b, c, lanes; elect d|p, lanes; redux.f.type d, a, lanes; vote.f.type d, p, lanes"""
    to, _, chosen = line.operands[0].partition("|")
    base = line.name.partition(".")[0]
    sources = [line.register(x, 0 if base == "vote" else 4) for x in line.operands[1:-1]]
    predicate = [line.register(chosen or "_", 0)] if base in ("shfl", "elect") else []
    line.emit(line.name, line.register(to, 0 if line.name.endswith(".pred") else 4), *predicate, *sources)


def _load_or_store(line: Line) -> None:
    """ld.space.v4.type {registers}, [address]; st.space.type [address], register"""
    words = [word for word in line.name.split(".") if word not in ("v2", "v4", "v8")]
    where, what = line.operands if words[0] == "st" else line.operands[::-1]
    size = next((n for x in vector(what) if (n := line.size(x))), BYTES[words[-1]])
    registers = line.registers(what, size)
    line.emit(".".join(words), *line.address(where), size, len(registers), *registers)


def _move(line: Line) -> None:
    """mov.type d, a; mov.b64 d, {a, b}; mov.b64 {d, e}, a; mov.u32 d, %tid.x"""
    (to, source), size = line.operands, BYTES[line.name.split(".")[-1]]
    if source in SPECIAL:
        line.emit("mov.special", line.register(to, 4), SPECIAL.index(source))
    elif to.startswith("{") or source.startswith("{"):
        parts, whole = (to, source) if to.startswith("{") else (source, to)
        part = size // len(vector(parts))
        operands = line.register(whole, size), *line.registers(parts, part)
        line.emit("unpack" if parts is to else "pack", part, len(operands) - 1, *operands)
    else:
        line.emit(f"mov.b{8 * size}" if size else "mov.pred", line.register(to, size), line.register(source, size))


def _change_space(line: Line) -> None:
    """cvta.param.u64 d, a; cvta.global.u64 d, a, of which the global ones are generic as they are"""
    to, source = (line.register(x, 8) for x in line.operands)
    if line.name == "cvta.param.u64":
        line.emit("add.s64", to, source, line.code.constant(PARAMETERS, 8))
    elif line.name in ("cvta.global.u64", "cvta.to.global.u64"):
        line.emit("mov.b64", to, source)
    else:
        raise ValueError(line.name)


def _convert(line: Line) -> None:
    """cvt.to.from d, a, where registers may be wider than numbers; cvt.bf16x2.f32 d, high, low"""
    if len(line.operands) == 3:
        return line.emit(line.name, *(line.register(x, 4) for x in line.operands))
    sizes = [line.size(x) or BYTES[kind] for x, kind in zip(line.operands, line.name.split(".")[-2:], strict=True)]
    line.emit(
        line.name, *(y for x, size in zip(line.operands, sizes, strict=True) for y in (line.register(x, size), size))
    )


def _copy(line: Line) -> None:
    """cp.async.cg.shared.global [to], [from], bytes{, valid bytes}"""
    to, source, size, *valid = line.operands
    valid_bytes = line.register(valid[0], 4) if valid else -1
    line.emit("cp.async", *line.address(to), *line.address(source), int(size, 0), valid_bytes)


def _box(line: Line) -> None:
    """cp.async.bulk.tensor.5d.shared.global.mbarrier [to], [map, {x, ...}], [mbarrier]

    cp.async.bulk.tensor.5d.global.shared.bulk_group [map, {x, ...}], [from]
    """
    loads = ".shared.global.mbarrier" in line.name
    if not loads and ".global.shared.bulk_group" not in line.name:
        raise ValueError(line.name)
    shared, place, *barrier = line.operands if loads else line.operands[::-1]
    found = re.fullmatch(r"\[\s*(\S+?)\s*,\s*(\{.*\})\s*\]", place)
    if found is None or len(barrier) != loads:
        raise ValueError(place)
    coordinates = line.registers(found[2], 4)
    addresses = (
        *line.address(shared),
        *line.address(f"[{found[1]}]"),
        *(line.address(barrier[0]) if loads else (0, 0, 0)),
    )
    line.emit(f"cp.async.bulk.tensor.{'load' if loads else 'store'}", *addresses, len(coordinates), *coordinates)


def _counted(line: Line) -> None:
    """cp.async.wait_group n and the like"""
    line.emit(line.name.removesuffix(".read"), *(int(x, 0) for x in line.operands))


def _wait_for_all(line: Line) -> None:
    """cp.async.wait_all"""
    line.emit("cp.async.commit_group")
    line.emit("cp.async.wait_group", 0)


def _matrices(line: Line) -> None:
    """ldmatrix.m8n8.x4{.trans}.shared.b16 {registers}, [address]; stmatrix the other way round"""
    base, *words = line.name.split(".")
    if words[0] != "m8n8" or words[-1] != "b16":
        raise ValueError(line.name)
    where, what = line.operands if base == "stmatrix" else line.operands[::-1]
    registers = line.registers(what, 4)
    line.emit(base, *line.address(where), int("trans" in words), len(registers), *registers)


def _mbarrier(line: Line) -> None:
    """mbarrier.init [b], n; .inval [b]; .arrive _, [b]{, n}; .arrive.expect_tx _, [b], bytes

    mbarrier.try_wait.parity p, [b], parity
    """
    name = ".".join(word for word in line.name.split(".") if word not in ("shared", "b64"))
    of = line.operands
    if name == "mbarrier.init":
        line.emit(name, *line.address(of[0]), int(of[1], 0))
    elif name == "mbarrier.inval":
        line.emit(name, *line.address(of[0]))
    elif name == "mbarrier.arrive":
        line.emit(name, *line.address(of[1]), int(of[2], 0) if len(of) > 2 else 1, 0)
    elif name == "mbarrier.arrive.expect_tx":
        line.emit("mbarrier.arrive", *line.address(of[1]), 1, int(of[2], 0))
    else:
        line.emit(name, *line.address(of[1]), line.register(of[0], 0), line.register(of[2], 4))


def _barrier(line: Line) -> None:
    """bar.sync id{, threads}; bar.arrive id, threads; barrier.sync, barrier.arrive"""
    barrier, *threads = (line.register(x, 4) for x in line.operands)
    line.emit(line.name.replace("barrier.", "bar."), barrier, *(threads or [-1]))


def _warpgroup_product(line: Line) -> None:
    """wgmma.mma_async.m64n128k16.f32.bf16.bf16 {D}, A or {A}, B, accumulate, 1, 1{, A transposed}, B transposed"""
    shape = re.search(r"\.m64n(\d+)(k\d+)", line.name)
    d, a, b, accumulate, *signs_and_transposed = line.operands
    held = a.startswith("{")  # in registers
    width, signs = int(shape[1]) if shape else 0, signs_and_transposed[:2]
    transposed = [0] * held + [int(x) for x in signs_and_transposed[2:]]
    first, results = line.registers(a, 4 if held else 8), line.registers(d, 4)
    if shape is None or signs != ["1", "1"] or len(transposed) != 2 or len(results) != width // 2:
        raise ValueError(line.name)
    factors = line.register(accumulate, 0), line.register(b, 8), *first
    line.emit(line.name.replace(shape[0], f".{shape[2]}"), width, int(held), *transposed, *factors, *results)


def _product(line: Line) -> None:
    """mma.m16n8k16... {D}, {A}, {B}, {C}"""
    line.emit(line.name, *(register for part in line.operands for register in line.registers(part, 4)))


def _branch(line: Line) -> None:
    """bra label"""
    line.emit("bra", branches=(line.instruction(line.operands[0]),))


def _branch_by_table(line: Line) -> None:
    """brx.idx index, label of a table"""
    targets = line.table(line.operands[1])
    line.emit("brx.idx", line.register(line.operands[0], 4), len(targets), branches=tuple(targets))


def _bare(line: Line) -> None:
    """Instructions whose operands, if any, make no difference."""
    line.emit({"exit": "ret", "fence.proxy.async.shared": "fence.proxy.async"}.get(line.name, line.name))


# By how plain names begin; the first that fits.
FORMS: dict[str, Callable[[Line], None]] = {
    "selp.": _select,
    **dict.fromkeys(("shfl.", "elect", "redux.", "vote."), _lanes),
    **dict.fromkeys(("ld.", "st."), _load_or_store),
    "mov.": _move,
    "cvta.": _change_space,
    "cvt.": _convert,
    "cp.async.bulk.tensor.": _box,
    **dict.fromkeys(("cp.async.bulk.commit_group", "cp.async.bulk.wait_group"), _counted),
    **dict.fromkeys(("cp.async.commit_group", "cp.async.wait_group"), _counted),
    "cp.async.wait_all": _wait_for_all,
    **dict.fromkeys(("cp.async.ca.shared.global", "cp.async.cg.shared.global"), _copy),
    **dict.fromkeys(("ldmatrix.", "stmatrix."), _matrices),
    "mbarrier.": _mbarrier,
    **dict.fromkeys(("bar.", "barrier."), _barrier),
    "wgmma.mma_async.": _warpgroup_product,
    **dict.fromkeys(("wgmma.commit_group", "wgmma.wait_group"), _counted),
    "mma.": _product,
    "brx.idx": _branch_by_table,
    "bra": _branch,
    **dict.fromkeys(("ret", "exit", "trap", "nop", "fence.proxy.async"), _bare),
}
