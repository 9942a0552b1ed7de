"""Triton's interpreter in half its time: what it does for each call of a device function, it does for each launch.

Before a kernel, and before every call of a function in it, it looks through all of `triton.language` for what it has to
replace. Here a launch replaces everything that functions use, and puts it back. Tried with Triton 3.7.1.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Speed the interpreter up, for this process; leave one alone that lacks what is replaced here."""
    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_get_np_dtype")):
        return
    replace_language, right_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # a kernel sees the first, tl.sum the second
    known: dict[str, np.dtype[Any]] = {}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    def np_dtype(of: Any) -> np.dtype[Any]:
        """The dtype of NumPy for one of Triton, which the interpreter finds in a dictionary that it makes each time."""
        scalar = of.scalar
        if scalar.is_ptr():
            return right_dtype(scalar)
        if scalar.name not in known:
            known[scalar.name] = right_dtype(scalar)
        return known[scalar.name]

    interpreter._patch_lang = lambda fn: replace_language(everything)
    interpreter.InterpretedFunction.__call__ = call
    interpreter._get_np_dtype = np_dtype
