"""The loss of videos that are not trained on, always at the same noise levels and with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.data.clips import Clip
from vidsparse.finetune.families import TrainingTask
from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.objective import Example, example_of, loss_of
from vidsparse.finetune.process.groups import Groups

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.data.cache import Encoded
    from vidsparse.runtime.run import Run

COUNT = 5  # noise levels


def hold_out(clips: Sequence[Clip], share: float) -> tuple[list[Clip], list[Clip]]:
    """Divide clips into those to train on and those that measure the loss.

    A hash of each video decides, so that more videos do not move those that are there. All clips of a file, and all
    copies of a video, are on one side.

    Args:
        clips: of the data. share: of the videos, in [0, 1), that is held out: one at least, where it is not 0.

    Raises:
        ValueError: a share out of range, or one that leaves nothing to train on.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share={share} must be in [0, 1), a part of the videos")
    if not share:
        return list(clips), []
    keys: dict[str, str] = {}  # clip key -> of its file's first clip
    files: dict[Any, str] = {}
    for clip in clips:
        own = files.setdefault(clip.path or clip.key, clip.key)
        keys.setdefault(clip.key, keys.get(own, own))
    groups = sorted(set(keys.values()), key=lambda key: sha256(key.encode()).hexdigest())
    count = max(1, round(share * len(groups)))
    if count >= len(groups):
        raise ValueError(
            f"validation_share={share} holds out {count} of {len(groups)} different videos and leaves none to train on"
        )
    out = set(groups[:count])
    return [c for c in clips if keys[c.key] not in out], [c for c in clips if keys[c.key] in out]


@dataclass(frozen=True)
class Validation:
    """Held-out videos, each at a few noise levels.

    Attributes:
        examples: encoded videos and captions.
        bounds: noise levels (low, high) of the transformer; the levels divide them evenly.
        seed: of the noise.
        groups: of the processes that share a clip; the groups share the work.
    """

    examples: Encoded
    bounds: tuple[float, float]
    seed: int
    groups: Groups = Groups(1)  # noqa: RUF009 (frozen)

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels, rising: the middles of equal parts of the bounds."""
        low, high = self.bounds
        return tuple(low + (high - low) * (place + 0.5) / COUNT for place in range(COUNT))

    def example(self, index: int, level: float) -> Example:
        """A held-out video at a level; its noise depends on the seed, the video and the level, not on its set."""
        video, caption = self.examples.video(index), self.examples.caption(index)
        name = sha256(f"{self.seed}-{self.examples.name(index)}-{level:.6f}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        noise = torch.randn(video[MAIN].shape, generator=generator)
        return example_of(video, caption, noise, torch.tensor([level]))

    @torch.no_grad()
    def measure(
        self,
        model: Any,
        module: torch.nn.Module,
        task: TrainingTask,
        run: Run,
        accelerator: Accelerator,
        dtype: torch.dtype,
    ) -> dict[str, Any]:
        """The mean loss, and that of each level, over all processes.

        Args:
            model: the transformer as accelerate wrapped it. module: itself.
            task: of its family.
            run: of sparse attention in it, which is as in training at each level.
            accelerator: of the training.
            dtype: of the transformer's inputs.
        """
        levels, training = self.levels, module.training
        sums = torch.zeros(len(levels), dtype=torch.float64)
        module.eval()
        # Without DDP, which would send buffers around each time.
        model = getattr(model, "module", model) if accelerator.num_processes > 1 else model
        try:
            total = len(self.examples) * len(levels)
            # Each process computes as often as the others, which may wait for its part of the weights.
            groups = self.groups
            for number in range(groups.own, groups.number * -(-total // groups.number), groups.number):
                index, place = divmod(min(number, total - 1), len(levels))
                example = self.example(index, levels[place]).to(accelerator.device)
                run.expect_another_video()
                with accelerator.autocast():
                    loss = float(loss_of(model, example, task, dtype=dtype)[1])
                sums[place] += loss if number < total and groups.speaks else 0.0
        finally:
            module.train(training)
        # As float32 on every device: some have no float64.
        mean = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").cpu() / len(self.examples)
        return {
            "validation_loss": float(mean.mean()),
            "validation_loss_by_level": {f"{level:.2f}": float(x) for level, x in zip(levels, mean, strict=True)},
        }
