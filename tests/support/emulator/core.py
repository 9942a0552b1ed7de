"""The emulator's core: built from C++ once, kept in a cache, and called."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCES = [HERE / "machine.h", HERE / "arithmetic.h", HERE / "instructions.cpp"]
# Signed numbers wrap, as on the chip; a product and a sum are one operation only where the code says so.
FLAGS = [
    *("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-fwrapv", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
CONSTANT = np.dtype([("offset", np.int64), ("bytes", np.int64), ("value", np.uint64)])


class TensorMap(ctypes.Structure):
    """As in machine.h: the innermost axis first, strides in bytes."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64 * 5),
        ("stride", ctypes.c_uint64 * 5),
        ("box", ctypes.c_uint32 * 5),
        ("rank", ctypes.c_uint32),
        ("element", ctypes.c_uint32),
        ("swizzle", ctypes.c_uint32),
    ]


class Launch(ctypes.Structure):
    """As in machine.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("code", "operands", "constants", "ranges", "parameters")),
        *((name, ctypes.c_void_p) for name in ("counts", "message")),
        *((name, ctypes.c_int64) for name in ("length", "constant_count", "range_count", "parameter_bytes")),
        *((name, ctypes.c_int64) for name in ("register_bytes", "shared_bytes", "warps", "limit")),
        ("grid", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("late_copies", "late_products", "fault_at")),
    ]


def compiler() -> str | None:
    """The C++ compiler: CXX, or what is found; None if there is none."""
    names = os.environ.get("CXX"), "g++", "clang++"
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where the core and compiled kernels are kept from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vidsparse-emulator"


def build() -> Path:
    """The core as a shared library, built unless the cache has it; several processes may ask at once.

    Raises:
        RuntimeError: no compiler, or one that refuses.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("the emulator needs a C++ compiler: install g++, or name one in CXX")
    # What -march=native means is a matter of the processor, which a home folder may have several of.
    processor = re.search(r"^(flags|Features)\b.*$", Path("/proc/cpuinfo").read_text(), re.M)
    key = hashlib.sha256("\n".join([command, *FLAGS, processor[0] if processor else ""]).encode())
    for source in SOURCES:
        key.update(source.read_bytes())
    folder = cache_folder()
    library = folder / f"{key.hexdigest()[:24]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / library.name
            done = subprocess.run([command, *FLAGS, "-o", made, SOURCES[-1]], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{command} does not build the emulator:\n{done.stderr[-2000:]}")
            made.replace(library)
    return library


@cache
def library() -> ctypes.CDLL:
    """The core, loaded."""
    loaded = ctypes.CDLL(str(build()))
    loaded.find.argtypes = [ctypes.c_char_p]
    loaded.instruction_name.restype = ctypes.c_char_p
    loaded.run.argtypes = [ctypes.POINTER(Launch)]
    return loaded


@cache
def find(name: str) -> int:
    """The handler of the instruction of this plain name, or -1."""
    return int(library().find(name.encode()))


@cache
def names() -> list[str]:
    """Plain names of all instructions, by handler."""
    return [library().instruction_name(i).decode() for i in range(library().instruction_count())]
