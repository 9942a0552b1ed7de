"""Many generations in one process: the memory stays flat, and each video is that of a fresh process.

The generations go through a list of cases in a random order: size, pattern, correction, cache and LoRA change from one
to the next, on one pipeline of `shapes`. Each case also runs once in a process of its own, whose video must be the
same bit for bit. After each generation the memory of the process and the bytes of all live tensors are recorded.

python benchmarks/soak.py    # a quarter of an hour on one core; exits with 1 if a check fails
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from torch._subclasses import FakeTensor

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.generation.models import DEFAULT, find_model
from vidsparse.generation.sample import sample
from vidsparse.runtime.pipeline import transformers_of

RESULTS = Path(__file__).parent / "results" / DEFAULT
SETTLED = 20  # generations after which the memory must not grow, and over which medians are taken
GROWTH = 0.02


@dataclass(frozen=True)
class Case:
    """One generation: frames x height x width, what is on, the seed of its noise.

    Attributes:
        size: frames, height and width of the video in pixels.
        pattern: of all its calls.
        correction: of the pattern.
        cache: a configuration of diffusers.
        lora: whether `shapes-long` is loaded for it, and unloaded afterwards.
        seed: of the noise.
    """

    size: tuple[int, int, int]
    pattern: vidsparse.Pattern
    correction: vidsparse.Correction | None = None
    cache: Any = None
    lora: bool = False
    seed: int = 0

    def run(self, pipe: Any) -> str:
        """Generate the video; return the digest of its frames."""
        frames, height, width = self.size
        settings = dict(find_model(DEFAULT).sampling) | dict(num_frames=frames, height=height, width=width)
        if self.lora:
            vidsparse.load_lora(pipe, "shapes-long")
        if self.cache is not None:
            vidsparse.enable_cache(pipe, self.cache)
        try:
            asked = settings | dict(prompt="a red circle moving left on a blue background", num_inference_steps=4)
            video = sample(pipe, self.pattern, asked, correction=self.correction, seed=self.seed)
        finally:
            if self.cache is not None:
                for transformer in transformers_of(pipe).values():
                    transformer.disable_cache()
            if self.lora:
                vidsparse.unload_lora(pipe)
        return hashlib.sha256(video.frames.tobytes()).hexdigest()


def cases() -> list[Case]:
    """Every pattern, correction and cache at least once, on several sizes."""
    first_block = diffusers.FirstBlockCacheConfig(threshold=0.3)
    magnitudes = diffusers.MagCacheConfig(mag_ratios=[1.0] * 4, num_inference_steps=4, threshold=0.5)
    broadcast = diffusers.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2)
    ends: dict[str, Any] = dict(dense_steps=1, dense_layers=(0,))
    small, flat, tall, square = (9, 32, 32), (17, 32, 64), (9, 80, 48), (21, 64, 64)
    top = vidsparse.TopBlocks(density=0.4)
    budget = vidsparse.StepBudget(
        vidsparse.Radial(density=0.4), budget=0.65, sparse_cost=0.8, dense_steps=1, dense_last_steps=0
    )
    return [
        Case(square, vidsparse.Dense()),
        Case(small, vidsparse.Radial(density=0.4)),
        Case(square, vidsparse.StepSchedule(vidsparse.Radial(density=0.3), **ends)),
        Case(flat, vidsparse.RadialRaster(), vidsparse.PooledComplement()),
        Case(tall, vidsparse.SlidingTile(window=(3, 8, 8))),
        Case(square, vidsparse.Gridded(stride=(2, 2, 2)), vidsparse.Reshaped(refresh_every=2)),
        Case(flat, vidsparse.PowerOfTwo()),
        Case(small, vidsparse.SpatialTemporal(density=0.5)),
        Case(tall, vidsparse.MixtureOfBlocks(top_k=(2, 2, 2)), seed=1),
        Case(square, vidsparse.MixtureOfBlocks(threshold=0.3), vidsparse.Rectified()),
        Case(square, top, vidsparse.PooledComplement()),
        Case(flat, vidsparse.Reuse(top, refresh_every=2)),
        Case(square, vidsparse.Reuse(vidsparse.ExactBlocks()), seed=2),
        Case(tall, vidsparse.VideoSparse(density=0.4)),
        Case(square, vidsparse.ShiftedWindows()),
        Case(square, vidsparse.ShiftedWindows(), vidsparse.ProxyTokens()),
        Case(square, vidsparse.SlidingClip(vidsparse.Radial(density=0.3, tile=(1, 4, 4)), frames=3)),
        Case(square, vidsparse.FreeSwim(vidsparse.InwardWindow(scale=2.0))),
        Case(small, vidsparse.LightForcing()),  # dense, since the model keeps no frames
        Case(square, budget),
        Case(small, budget, seed=3),
        Case(square, vidsparse.TemporalBias(vidsparse.Radial(density=0.4)), vidsparse.Reshaped(refresh_every=2)),
        Case(square, vidsparse.Dense(), cache=first_block),
        Case(flat, vidsparse.Reuse(top, refresh_every=2), cache=first_block),
        Case(square, vidsparse.Radial(density=0.4), vidsparse.Reshaped(), cache=magnitudes),
        Case(tall, top, cache=broadcast),
        Case((33, 32, 32), vidsparse.Radial(density=0.4), lora=True),
        Case((33, 32, 48), vidsparse.Reuse(top), vidsparse.PooledComplement(), lora=True),
        Case((33, 32, 32), vidsparse.Dense(), lora=True, cache=first_block),
        Case(square, vidsparse.StepSchedule(vidsparse.Radial(density=0.3), **ends), lora=True, seed=4),
    ]


@dataclass(frozen=True)
class Held:
    """What a process holds after a generation, in bytes.

    Attributes:
        process: resident memory, after the allocator gave back what it can.
        tensors: memory of all tensors that Python can reach, each storage once.
    """

    process: int
    tensors: int

    @staticmethod
    def now() -> Held:
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        storages = {}
        for found in gc.get_objects():
            kind = type(found)  # `isinstance` asks lazy modules for a class, and they warn
            if not issubclass(kind, torch.Tensor) or issubclass(kind, FakeTensor):
                continue  # a compiler's tensors have no memory
            if found.layout == torch.strided and not found.is_meta:
                storage = found.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return Held(psutil.Process().memory_info().rss, sum(storages.values()))


def load() -> Any:
    pipe = find_model(DEFAULT).load(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def alone(number: int) -> str:
    """The digest of a case from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", str(number), "--threads", str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[-1]


def soak(numbers: Iterable[int]) -> tuple[dict[int, set[str]], list[Held]]:
    """Generate the cases of these numbers in one process: the digests of each, and what is held after each."""
    pipe, known = load(), cases()
    digests: dict[int, set[str]] = {}
    held: list[Held] = []
    for number in numbers:
        digests.setdefault(number, set()).add(known[number].run(pipe))
        held.append(Held.now())
    return digests, held


def shuffled(generations: int, seed: int = 0) -> list[int]:
    """All cases in a random order, then all in another one, and so on."""
    rng, numbers = random.Random(seed), list(range(len(cases())))
    order: list[int] = []
    while len(order) < generations:
        order += rng.sample(numbers, len(numbers))
    return order[:generations]


def growth(values: list[int]) -> float:
    """By how much the median of the last generations exceeds that of those right after the first."""
    first, last = values[SETTLED : 2 * SETTLED], values[-SETTLED:]
    return statistics.median(last) / statistics.median(first) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", type=int, help="print the digest of one case, and nothing else")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        print(cases()[arguments.case].run(load()))
        return 0
    digests, held = soak(shuffled(arguments.generations))
    wrong = [repr(cases()[number]) for number, found in sorted(digests.items()) if found != {alone(number)}]
    grown = {name: growth([getattr(h, name) for h in held]) for name in ("process", "tensors")}
    result = {
        "generations": len(held),
        "cases": len(digests),
        "differ_from_a_fresh_process": wrong,
        "growth": {name: round(value, 5) for name, value in grown.items()},
        "process_bytes": [h.process for h in held],
        "tensor_bytes": [h.tensors for h in held],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    with replacing(arguments.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if not k.endswith("_bytes")}, indent=1))
    return int(bool(wrong) or max(grown.values()) > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
