"""An auxiliary task for training `shapes`: each token says, from noisy latents, where the objects' outlines are.

Flow matching alone teaches a small model local edges long before it teaches that distant tokens share one outline.
Supervising the hidden states in the middle with what the renderer knows is the idea of REPA (Yu et al., "Representation
Alignment for Generation", 2024), with geometry in the place of a pre-trained encoder. The reader is not shipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vidsparse.shapes.render import SIZE, Trajectory, signed_distance
from vidsparse.shapes.scene import Scene

OBJECTS = 2
REACH = 8.0  # pixels from an outline at which the distance saturates
FEATURES = 6  # an object's: distance at the first and last frame of a latent frame; sine and cosine of the offset


def outlines(
    examples: Sequence[tuple[Scene, tuple[Trajectory, ...]]],
    latent_frames: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """What each token should say: float32 [examples, latent_frames, height, width, 2 * 6], NaN for no object."""
    y = (torch.arange(height, device=device) + 0.5)[:, None] * (SIZE / height)
    x = (torch.arange(width, device=device) + 0.5) * (SIZE / width)
    last = 4 * torch.arange(latent_frames)
    first = (last - 3).clamp(min=0)
    target = torch.full((len(examples), latent_frames, height, width, OBJECTS, FEATURES), math.nan, device=device)
    # Objects of one shape are asked about together.
    places: dict[str, list[tuple[int, int]]] = {}
    for i, (scene, _) in enumerate(examples):
        for j, o in enumerate(scene.objects):
            places.setdefault(o.shape, []).append((i, j))
    for shape, found in places.items():
        paths = [(examples[i][0].objects[j].motion, examples[i][1][j]) for i, j in found]
        centres = torch.stack([path.centres(motion, 4 * latent_frames - 3) for motion, path in paths]).to(device)
        radius = torch.tensor([path.radius for _, path in paths], device=device)[:, None, None, None]
        rows, columns = torch.tensor(found, device=device).unbind(dim=1)
        said = torch.empty(len(found), latent_frames, height, width, FEATURES, device=device)
        for k, frame in enumerate((first, last)):
            centre = centres[:, frame, :, None, None]
            dx = (x - centre[:, :, 0] + SIZE / 2) % SIZE - SIZE / 2
            dy = (y - centre[:, :, 1] + SIZE / 2) % SIZE - SIZE / 2
            said[..., k] = torch.tanh(signed_distance(shape, dx, dy, radius) / REACH)
        # The offset at the last frame: an angle, since the frame's borders wrap.
        angles = torch.stack(torch.broadcast_tensors(dx, dy), dim=-1) * (2 * math.pi / SIZE)
        said[..., 2:4], said[..., 4:6] = angles.sin(), angles.cos()
        target[rows, ..., columns, :] = said
    return target.flatten(-2)


class OutlineReader(torch.nn.Module):
    """Reads the outlines from the hidden states after two thirds of the transformer's blocks."""

    def __init__(self, blocks: torch.nn.ModuleList, width: int):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, OBJECTS * FEATURES),
        )
        self.hidden = torch.empty(0)
        blocks[2 * len(blocks) // 3 - 1].register_forward_hook(self._keep)

    def _keep(self, block: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.hidden = output

    def loss(self, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the last forward pass against targets [batch, latent_frames, height, width, 12]."""
        target = targets.flatten(1, 3)
        known = ~target.isnan()
        said: torch.Tensor = self.layers(self.hidden).float()
        return (said - target)[known].square().mean()
