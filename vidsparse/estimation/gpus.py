"""GPUs by name: what their makers say of speed and memory."""

from __future__ import annotations

from dataclasses import dataclass

UTILIZATION = 0.5  # of a GPU's peak; dense attention and large linear layers are said to reach 0.5 to 0.75


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: for `estimate`.
        teraflops: dense bfloat16 products with float32 sums, 10^12 operations a second, without structured sparsity.
        terabytes: memory bandwidth, 10^12 bytes a second.
        gigabytes: of memory.
        source: of these numbers.
    """

    name: str
    teraflops: float
    terabytes: float
    gigabytes: int
    source: str

    def seconds(self, flops: float, moved: float, utilization: float = UTILIZATION) -> float:
        """A roofline: as long as operations take at a share of the peak, or as moving bytes takes.

        Args:
            flops: operations. moved: bytes read and written. utilization: the share.
        """
        return max(flops / (self.teraflops * 1e12 * utilization), moved / (self.terabytes * 1e12))


GPUS = (
    Gpu("H100", 989, 3.35, 80, "NVIDIA H100 data sheet, SXM"),
    Gpu("H200", 989, 4.8, 141, "NVIDIA H200 data sheet, SXM"),
    Gpu("B200", 2250, 8.0, 192, "NVIDIA DGX B200 data sheet, an eighth of the system"),
    Gpu("A100", 312, 2.039, 80, "NVIDIA A100 data sheet, SXM 80 GB"),
    Gpu("L40S", 362, 0.864, 48, "NVIDIA L40S data sheet"),
    Gpu("RTX 5090", 209.5, 1.792, 32, "NVIDIA RTX Blackwell architecture white paper"),
    Gpu("RTX 4090", 165.2, 1.008, 24, "NVIDIA Ada architecture white paper"),
    Gpu("RTX 3090", 71, 0.936, 24, "NVIDIA GA102 architecture white paper"),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, in any case, with or without spaces.

    Raises:
        ValueError: an unknown name; lists those that there are.
    """
    for gpu in GPUS:
        if _plain(name) in (_plain(gpu.name), _plain(gpu.name).removeprefix("rtx")):
            return gpu
    raise ValueError(f"GPU {name!r} is unknown; choose one of {', '.join(gpu.name for gpu in GPUS)}")


def _plain(name: str) -> str:
    return "".join(name.lower().split()).replace("-", "").removeprefix("nvidia")
