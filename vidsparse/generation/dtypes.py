"""The names of dtypes."""

from __future__ import annotations

# PyTorch's name -> what others call it.
DTYPES = {
    "float32": ("fp32", "f32", "float"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "f16", "half"),
}


def dtype_name(name: str) -> str:
    """PyTorch's name of a dtype, such as "bfloat16" for "bf16", "BF16" or "torch.bfloat16".

    Raises:
        ValueError: none of `DTYPES`; lists them.
    """
    asked = name.lower().removeprefix("torch.")
    for known, others in DTYPES.items():
        if asked in (known, *others):
            return known
    known_names = (f"{known} ({', '.join(others)})" for known, others in DTYPES.items())
    raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(known_names)}")
