"""The base of patterns: frozen dataclasses that say, for one layer and step, which key tiles each query tile sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch

from vidsparse.block_map import Plan, head_groups, plan_of_heads
from vidsparse.grid import VideoGrid
from vidsparse.patterns.last_frames import of_last_frames


def all_there(x: torch.Tensor) -> torch.Tensor:
    """What `Context.gather` is where every head of the layer is in the call: the tensor itself."""
    return x


@dataclass(frozen=True)
class Context:
    """The position of a call in the model and in the denoising.

    Attributes:
        layer, layers: index of the attention layer, and how many the transformer has.
        step, steps: index of the denoising step, and how many the run has (0 if unknown).
        sigma: noise level of the step in [0, 1]: timestep / 1000.
        heads: attention heads of the layer.
        local_heads: which of them query and key hold, in this order, where several GPUs share a video and each has some
            of the heads; None: all. `plan` answers for all heads, `select` for those of query and key.
        gather: the values of all heads [batch, heads, ...] from those of query and key, for a pattern whose heads
            choose together. All GPUs have to call it equally often, so never call it where content decides.
        transformer: "transformer", or "transformer_2" for the second expert of a pipeline ("transformer_ref" for the
            one that reads references).
        branch: which of the different calls of its step this is. With classifier-free guidance in two calls, 0 is the
            call with the prompt and 1 the call without it.
        memory: state that a pattern keeps from step to step, for this layer, branch and batch size of one run (at most
            two batch sizes; a third drops the oldest); empty at the start of a video. A correction has one of its own
            for each group of heads. The report counts the `nbytes` of its values. Keep copies of queries, keys, values
            and outputs: graphs of `torch.compile` write over them.
        grid: the tokens of the whole video, for `Pattern.is_dense`; None: not known, and taken as no longer than the
            videos of training.
        key_grid: the tokens of keys and values, where those of earlier frames are kept and the queries are its last
            frames; None: keys are the tokens of the queries. `Pattern.two_grids` says which patterns take it.
        value: values of the call [batch, tokens, heads, head_dim], for patterns that compare outputs.
        extra_valid: int [batch], how many prefix and suffix tokens, in sequence order, are keys; None: all.
    """

    layer: int = 0
    layers: int = 1
    step: int = 0
    steps: int = 0
    sigma: float = 1.0
    heads: int = 1
    transformer: str = "transformer"
    branch: int = 0
    local_heads: tuple[int, ...] | None = None
    grid: VideoGrid | None = None
    key_grid: VideoGrid | None = None
    memory: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    value: torch.Tensor | None = field(default=None, compare=False, repr=False)
    extra_valid: torch.Tensor | None = field(default=None, compare=False, repr=False)
    gather: Callable[[torch.Tensor], torch.Tensor] = field(default=all_there, compare=False, repr=False)


class Pattern(ABC):
    """Decides which key tiles each query tile sees. Subclasses are frozen dataclasses of published hyper-parameters.

    Invariants, tested for every pattern: each query tile keeps at least one key tile; the map depends only on the
    fields, the grid and the context (and for `select` on query and key); prefix and suffix stay exact.

    Class attributes for `vidsparse.patterns.names`, which builds patterns from words:
        named_defaults: values for fields without a usable default.
        named_alternatives: fields that replace all of `named_defaults` when one of them is given.
        density_field: the field that a density sets; patterns without it take no density.

    Class attributes for `sparsify`:
        may_skip: whether `skips` may be True of it, whatever pattern it holds.
        two_passes: whether a call of the transformer is two passes, see `FreeSwim`.
        two_grids: whether it chooses for a chunk of frames among the tokens of `Context.key_grid`, by itself or by the
            patterns that it holds. Patterns of shapes alone do: `select` takes the rows of the whole video's map.

    Class attribute for `vidsparse.patterns.scale`:
        scaled_fields: those that are (frames, height, width) in tokens, and change with the size of the video.
    """

    named_defaults: ClassVar[Mapping[str, Any]] = {}
    named_alternatives: ClassVar[tuple[str, ...]] = ()
    density_field: ClassVar[str] = "density"
    may_skip: ClassVar[bool] = False
    two_passes: ClassVar[bool] = False
    two_grids: ClassVar[bool] = True
    scaled_fields: ClassVar[tuple[str, ...]] = ()

    def _repr_html_(self) -> str:
        from vidsparse.pictures.html import EXAMPLE, pattern_html

        shown: Any = fields(self) if is_dataclass(self) else ()
        known = {f.name: getattr(self, f.name) for f in shown if f.repr}
        if self.reads_content:
            return pattern_html(type(self).__name__, known, None)
        try:
            ((_, block_map, _), *_) = head_groups(self.plan(EXAMPLE, Context()), 1)
        except Exception as error:  # whatever a pattern says of this size and of one head: its fields are shown
            return pattern_html(type(self).__name__, known, None, f"no picture for one head on {EXAMPLE}: {error}")
        return pattern_html(type(self).__name__, known, block_map)

    @classmethod
    def named(cls, **settings: Any) -> Pattern:
        """Build the pattern from the values of fields; overridden where words cannot give a field as it is."""
        return cls(**settings)

    @abstractmethod
    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        """The block map for a grid, from shapes alone; or one for each group of heads, if they need different tiles.

        It is for all heads of the layer, also where the context says that a GPU has some of them.
        """

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        """The block map for queries and keys [batch, tokens, heads, head_dim]; by default that of `plan`.

        Where `context.key_grid` is given, `grid` is that of its last frames, and the map their rows of the map that
        `plan` gives for all frames.
        """
        del query, key
        if (keys := context.key_grid) is None:
            plan = self.plan(grid, context)
        else:
            plan = of_last_frames(self.plan(keys, replace(context, key_grid=None)), grid, keys)
        return plan if context.local_heads is None else plan_of_heads(plan, context.local_heads)

    @property
    def reads_content(self) -> bool:
        """Whether the map depends on queries and keys, not on shapes alone."""
        return type(self).select is not Pattern.select

    def check_model(self, layers: int, heads: int | None) -> None:
        """Refuse a model before it runs.

        Args:
            layers: number of its attention layers.
            heads: heads of each layer; None if unknown.

        Raises:
            ValueError: the pattern is for a model of another shape.
        """
        del layers, heads

    def check_grid(self, grid: VideoGrid) -> None:
        """Refuse a video. Each layer that can be sparse calls this, in dense steps too.

        Args:
            grid: the tokens of the video.

        Raises:
            ValueError: the pattern is for a video of another size.
        """
        del grid

    def at(self, context: Context) -> Pattern:
        """The pattern that a call comes to, through schedules and choices; by default itself."""
        del context
        return self

    def is_dense(self, context: Context) -> bool:
        """Whether this layer and step should run the model's own dense attention instead."""
        del context
        return False

    def skips(self, context: Context) -> bool:
        """Whether this step is skipped, in all layers: the transformer's output is that of an earlier step."""
        del context
        return False


class ContentPattern(Pattern):
    """A pattern whose map depends on queries and keys. Its plan is the map where all tokens have the same content."""

    two_grids: ClassVar[bool] = False

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        """The map for queries and keys of zeros, with a head_dim of 1.

        It shows the density to expect, not the tiles of real content.
        """
        context = Context() if context is None else context
        nothing = torch.zeros(1, grid.tokens, context.heads, 1)
        keys = nothing if context.key_grid is None else torch.zeros(1, context.key_grid.tokens, context.heads, 1)
        return self.select(nothing, keys, grid, replace(context, memory={}, value=keys))

    @abstractmethod
    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        """The block map for these queries and keys [batch, tokens, heads, head_dim]."""


def patterns_in(pattern: Pattern) -> Iterator[Pattern]:
    """A pattern, and those that are inside it."""
    yield pattern
    held: list[Any] = [getattr(pattern, field.name) for field in fields(pattern)] if is_dataclass(pattern) else []
    for value in held:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Pattern):
                yield from patterns_in(inner)
