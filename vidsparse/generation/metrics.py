"""How far a video is from another one of the same size: PSNR, SSIM, MS-SSIM, flicker, and LPIPS if it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vidsparse.generation.video import Frames

SCALES_SIDE = 176  # pixels: a window of 11 fits a frame of this side also once MS-SSIM has halved it four times
WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet, in the folder where torch keeps what it downloads


@dataclass(frozen=True)
class Difference:
    """How far a video is from another one.

    Attributes:
        psnr: in dB over all frames; None for identical videos, where it is infinite.
        ssim: mean of the frames.
        ms_ssim: mean of the frames; None where a side of a frame has fewer than 176 pixels, too few for five scales.
        flicker: mean absolute difference between the frame-to-frame changes of the two videos, where the range of a
            pixel is 1; None for a single frame.
        lpips: mean of the frames; None unless it was asked for.
        worst_frame: the index of the frame with the lowest PSNR; None for identical videos.
        frame_psnr, frame_ssim: of each frame.
    """

    psnr: float | None
    ssim: float
    ms_ssim: float | None
    flicker: float | None
    lpips: float | None
    worst_frame: int | None
    frame_psnr: tuple[float | None, ...]
    frame_ssim: tuple[float, ...]


class Lpips:
    """LPIPS with AlexNet, whose weights must be there already: nothing is downloaded."""

    def __init__(self) -> None:
        """Read the weights. Raises: see `check`."""
        self.check()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._net: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> float:
        """LPIPS of frames [frames, 3, height, width] in [0, 1]; the mean over them."""
        with torch.no_grad():
            return float(self._net(first.clamp(0, 1), second.clamp(0, 1)))

    @staticmethod
    def check() -> None:
        """Refuse, before slow work, what cannot be measured here.

        Raises:
            ImportError: torchvision is missing, or does not fit this torch.
            FileNotFoundError: the weights are.
        """
        try:
            import_module("torchvision")
        except ModuleNotFoundError:
            raise ImportError("LPIPS needs torchvision; install it with: pip install 'vidsparse[metrics]'") from None
        except (ImportError, RuntimeError) as error:  # the latter from a build for another torch
            raise ImportError(f"LPIPS needs torchvision, which does not fit this torch: {error}") from error
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(
                f"LPIPS needs the weights of AlexNet (244 MB) in {path}, which vidsparse does not download; fetch them "
                f"from https://download.pytorch.org/models/{WEIGHTS}"
            )


def difference(first: Frames, second: Frames, lpips: Lpips | None = None) -> Difference:
    """How far a video is from another one.

    Args:
        first, second: float32 [frames, height, width, 3] in [0, 1].
        lpips: also measure LPIPS with it.

    Raises:
        ValueError: videos of two sizes.
    """
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as ms_ssim,
        peak_signal_noise_ratio as psnr,
        structural_similarity_index_measure as ssim,
    )

    if first.shape != second.shape:
        raise ValueError(f"cannot compare videos of two sizes: {first.shape[:3]} and {second.shape[:3]}")
    # The metrics take [frames, channels, height, width]; SSIM needs 300 bytes a pixel, so they run frame by frame.
    a, b = (torch.from_numpy(frames).movedim(-1, 1) for frames in (first, second))
    pairs = list(zip(a.split(1), b.split(1), strict=True))
    frame_psnr = [float(psnr(x, y, data_range=1.0)) for x, y in pairs]
    frame_ssim = [float(ssim(x, y, data_range=1.0)) for x, y in pairs]  # type: ignore[arg-type]
    has_scales = min(a.shape[2:]) >= SCALES_SIDE
    worst = min(range(len(pairs)), key=frame_psnr.__getitem__)
    return Difference(
        psnr=_finite(float(psnr(a, b, data_range=1.0))),
        ssim=_mean(frame_ssim),
        ms_ssim=_mean([float(ms_ssim(x, y, data_range=1.0)) for x, y in pairs]) if has_scales else None,
        flicker=float((a.diff(dim=0) - b.diff(dim=0)).abs().mean()) if len(pairs) > 1 else None,
        lpips=None if lpips is None else _mean([lpips(*pair) for pair in pairs]),
        worst_frame=None if frame_psnr[worst] == math.inf else worst,
        frame_psnr=tuple(map(_finite, frame_psnr)),
        frame_ssim=tuple(frame_ssim),
    )


def _finite(value: float) -> float | None:
    return None if value == math.inf else value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
