"""Which attention of diffusers the dense side runs: the fastest one that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vidsparse.generation.sample import sample
from vidsparse.generation.strength import steps_asked
from vidsparse.patterns import Dense

NATIVE = "native"  # PyTorch's scaled_dot_product_attention; on a GPU PyTorch chooses among its own
# Exact attention that diffusers names, in packages that it finds on its own. Others, which it downloads, must be named.
ON_GPU = NATIVE, "_native_cudnn", "_native_flash", "flash", "_flash_3"


@contextmanager
def dense_backend(name: str) -> Iterator[None]:
    """Within the context, attention that is not sparse runs on a backend of diffusers.

    Raises:
        ValueError: an unknown name.
        RuntimeError: its package is missing.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    if name not in (known := sorted(backend.value for backend in AttentionBackendName)):
        raise ValueError(f"dense backend {name!r} is unknown to diffusers; known are {', '.join(known)}")
    with attention_backend(name):
        yield


def fastest_backend(
    pipe: Any, arguments: Mapping[str, Any], on_try: Callable[[str], None] = lambda name: None
) -> tuple[str, dict[str, float]]:
    """The dense attention that takes the least time in one denoising step of a pipeline, and the seconds of each.

    Each backend runs the step twice, and the second counts. On a CPU there is only `NATIVE`, and nothing is timed.

    Args:
        pipe: a diffusers pipeline, loaded.
        arguments: of `pipe(...)`, prompt included.
        on_try: called with the name of each backend before it runs.
    """
    if pipe._execution_device.type != "cuda":
        return NATIVE, {}
    steps = steps_asked(type(pipe), 1, arguments.get("strength"))
    one_step = {**arguments, "num_inference_steps": steps, "output_type": "latent"}
    seconds: dict[str, float] = {}
    for name in ON_GPU:
        on_try(name)
        try:
            with dense_backend(name):
                done = [sample(pipe, Dense(), one_step) for _ in range(2)][1]
        except Exception:  # a package that is missing, a mask or a dtype that it does not take: each has its own error
            continue
        seconds[name] = done.attention_seconds
    return min(seconds, key=seconds.__getitem__, default=NATIVE), seconds
