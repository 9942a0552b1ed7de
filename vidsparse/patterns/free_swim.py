"""Windows whose cross-attention to the text comes from a second, dense branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidsparse.block_map import Plan
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_flag, check_whole


@dataclass(frozen=True)
class FreeSwim(Pattern):
    """Runs `pattern`, and takes the output of each cross-attention to the text from a dense pass of the same input.

    Attention within windows repeats objects where the video is larger than those of training, since each window follows
    the prompt by itself. Here a call of the transformer is two passes: the full branch, in which all attention is
    dense, and the branch of the windows, whose cross-attention is overridden with that of the full branch, layer by
    layer. Only the second one's output is used. In steps that `every` leaves out, the override is what the last full
    branch gave, and the call is one pass.

    Paper: Wu et al., FreeSwim, arXiv 2511.14712. Code: WillWu111/FreeSwim at 9f35a72. `every=2` on the calls with the
    prompt alone is the published cached variant, `every=1, unconditional=True` the one without a cache. Differences:
    the two branches are two passes and not two rows of a batch, so that a step without a full branch costs one pass;
    any pattern may take the place of the windows; the whole output of cross-attention is overridden, also the part that
    comes from an image, which the published code leaves to each branch. The published pipeline starts from a video of
    the size of training, enlarged and noised to 0.7: `vidsparse generate --video FILE --strength 0.7`.

    It is for generation, without gradients, and for families whose adapter knows the cross-attention: Wan, Wan-VACE and
    SkyReels-V2. What is kept is one output of cross-attention for each layer, each as large as the hidden states:
    15.8 GB for Wan 2.1 1.3B at 1088x1920 and 81 frames in bfloat16. Caches of diffusers are refused beside it.

    Attributes:
        pattern: the pattern of the windows' branch, such as `InwardWindow`.
        every: the full branch runs in every so many steps, from the first on, and where nothing is kept yet.
        unconditional: whether the calls without the prompt are overridden too.
    """

    pattern: Pattern
    every: int = 2
    unconditional: bool = False

    two_passes: ClassVar[bool] = True
    named_defaults: ClassVar[dict[str, Any]] = {"pattern": "inward-window"}

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as InwardWindow(scale=2.0)")
        if self.pattern.two_passes:
            raise ValueError(f"pattern={self.pattern!r} has a full branch already; give it a pattern of windows")
        check_whole(self, "every", least=1)
        check_flag(self, "unconditional")

    def overrides(self, context: Context) -> bool:
        """Whether the cross-attention of a call comes from the full branch."""
        return self.unconditional or context.branch == 0

    def refreshes(self, context: Context) -> bool:
        """Whether the full branch runs in a step, even where the output of an earlier one is kept."""
        return context.step % self.every == 0

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        return self.pattern.select(query, key, grid, context)

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def is_dense(self, context: Context) -> bool:
        return self.pattern.is_dense(context)

    def skips(self, context: Context) -> bool:
        return self.pattern.skips(context)
