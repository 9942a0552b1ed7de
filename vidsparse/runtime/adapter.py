"""The port between the library and the families of diffusers: `Adapter`, `SparseLayer`, `WrappedProcessor`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import Any, Protocol, TypeVar

import torch

from vidsparse.grid import VideoGrid

# Why FasterCache cannot work with a family.
SEPARATE_GUIDANCE = "it wants both branches of guidance in one batch, and the family's pipelines call each by itself"
PACKED_LATENTS = "it wants latents of frames, height and width, and the model takes them as tokens"
TRAIN_TIMESTEPS = 1000  # diffusers' flow-matching schedulers count noise from 0 to this

# Random normal numbers of a shape: `noise(batch, tokens, channels)`.
Noise = Callable[..., torch.Tensor]
# What a processor returns: hidden states, or those of video and text.
States = TypeVar("States", torch.Tensor, tuple[torch.Tensor, ...])


class AttentionCall(Protocol):
    """One call of an attention layer."""

    @property
    def reason(self) -> str | None:
        """The reason to run the model's own processor; None where the call is sparse."""

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the forward pass. Raises `RuntimeError` where it is unknown; a sparse call has one."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sparse attention [batch, tokens, heads, head_dim].

        Args:
            query, key, value: [batch, tokens, heads, head_dim].
            extra_valid: int [batch], how many of the prefix and suffix tokens, in sequence order, are real; None: all.
            gate: the learned gate of the output, of the shape of the query, of a model that has one.
        """


class SparseLayer(Protocol):
    """The interface of the library for a processor: `begin`, then its own way or `attend`, then `end`."""

    def begin(self, unsupported: str | None = None) -> AttentionCall:
        """Begin a call; `unsupported` is why it cannot be sparse, or None."""

    def end(self, call: Any, out: States) -> States:
        """Record what ran; returns `out`."""


class Adapter(ABC):
    """Puts sparse attention into the transformers of one family.

    Attributes:
        family: what its models are called. tasks: what they make. layout: where tokens that are not video are.
        processors: names of the processor classes of diffusers that `processor` can replace; empty for any processor.
        gated: whether its processors read the gates that `load_gates` gives.
        exchanges: whether the processors of diffusers exchange heads between GPUs under context parallelism. Where they
            do not, ours do for dense calls too.
        block_states: for caches and guiders of diffusers, where they do not know a block: its class -> the arguments
            that it returns changed, the video's first.
        attention_states: for guiders, the arguments that one of the `self_attentions` returns changed, in its order.
        refused_caches: for `enable_cache`, name of a config -> why this cache cannot work with the family.
        vae_stride: frames, and pixels in height and width, that a latent of the family's first VAE covers.
        frame_rate: frames a second of its videos, as published; where models differ in it, `fps` says which.
    """

    family = tasks = layout = ""
    processors: tuple[str, ...] = ()
    gated = False
    exchanges = True
    block_states: Mapping[str, tuple[str, ...]] = {}
    attention_states: tuple[str, ...] = ("hidden_states",)
    refused_caches: Mapping[str, str] = {}
    vae_stride: tuple[int, int] = (4, 8)
    frame_rate: int = 16

    @abstractmethod
    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The attention modules in which video tokens see video tokens, by module name, in the order they run."""

    def cross_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The attention modules in which video tokens see the text and nothing else, by module name.

        Raises:
            NotImplementedError: the family has none, or this adapter does not know them.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no cross-attention of {self.family} to the text")

    @abstractmethod
    def processor(self, original: Any, layer: SparseLayer) -> Any:
        """An attention processor that runs `layer`, and `original` for dense calls."""

    def wrap(self, original: Any, layer: SparseLayer) -> Any:
        """The processor that replaces `original`.

        A processor of another class may compute something else than `processor` does. It runs dense, and the report
        says why. Such a class can become sparse: give it a method `sparse_processor(layer)` that returns a processor,
        as `Adapter.processor` does.
        """
        if hasattr(original, "sparse_processor"):
            return original.sparse_processor(layer)
        reason = self.unknown(original)
        if reason is None:
            return self.processor(original, layer)
        return _unknown_as(original.__class__)(original, layer, reason)

    def unknown(self, original: Any) -> str | None:
        """The reason why calls of a processor cannot be sparse, or None."""
        kind = type(original)
        own = kind.__name__ in self.processors and kind.__module__.startswith("diffusers.")
        if own or not self.processors or hasattr(original, "sparse_processor"):
            return None
        return f"its processor is {kind.__qualname__}, not {' or '.join(self.processors)} of diffusers"

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        """The token grid of a forward call, by default that of its latents cut into patches.

        Args:
            call: the arguments of `forward` by name.

        Raises:
            NotImplementedError: tokens in an order that no grid describes; the call runs dense, for this reason.
        """
        config: Any = transformer.config
        sizes = zip(self.latent_sizes(call), self.patch(config), strict=True)
        frames, height, width = (size // patch for size, patch in sizes)
        return VideoGrid(frames, height, width, *self.extra_tokens(transformer, call))

    def key_grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid | None:
        """The tokens of keys and values in a forward call that has a `grid`, for a model that keeps those of frames.

        `grid` is then that of the last frames; prefix and suffix may differ. None: they are the tokens of the queries.
        """
        del transformer, call
        return None

    @property
    def two_grids(self) -> bool:
        """Whether it has calls whose keys are of more frames than their queries."""
        return type(self).key_grid is not Adapter.key_grid

    def latent_sizes(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """Frames, height and width of the latents of a forward call, before they are cut into patches."""
        frames, height, width = call["hidden_states"].shape[-3:]
        return frames, height, width

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        """The number of tokens before the video in a forward call, and of those after it."""
        del transformer, call
        return 0, 0

    def ends(self, grid: VideoGrid) -> tuple[int, int]:
        """The number of tokens at the start and at the end of the sequence that are whole on each of several GPUs.

        The other tokens are divided among the GPUs, by `parallel_plan`.
        """
        del grid
        return 0, 0

    def parallel_plan(self, transformer: torch.nn.Module) -> Mapping[str, Any]:
        """Where to divide the sequence among GPUs, as diffusers' `enable_parallelism(cp_plan=...)` takes it.

        Raises:
            NotImplementedError: neither diffusers nor this adapter has a plan for the model.
        """
        plan: Mapping[str, Any] | None = getattr(transformer, "_cp_plan", None)
        if plan is None:
            raise NotImplementedError(f"there is no plan to divide {self.family} among GPUs")
        return plan

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The noise of a call, from 0 to `TRAIN_TIMESTEPS` and falling within a run; the most where tokens differ."""
        del transformer
        return float(torch.as_tensor(call["timestep"]).max())

    def left_out(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> Iterable[int]:
        """The indices of `self_attentions` that the model leaves out of a forward call, for a guider of the family."""
        del transformer, call
        return ()

    def patch(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Latents (frames, height, width) that a token covers, from all settings of a transformer."""
        size = config.get("patch_size", 1)
        return tuple(size) if isinstance(size, (tuple, list)) else (config.get("patch_size_t") or 1, size, size)

    def fps(self, config: Mapping[str, Any]) -> int:
        """Frames a second of the videos of a transformer with these settings, as published."""
        del config
        return self.frame_rate

    def latents(self, frames: int) -> tuple[int, int] | None:
        """For a VAE whose latent frames are not 1 + n, of 1 + n * stride frames: the frames nearest to `frames` that it
        produces, and how many latent frames these are. None: it is a usual one."""
        del frames
        return None

    def heads(self, attention: torch.nn.Module) -> int | None:
        """The number of heads of one of the `self_attentions`; None where unknown."""
        names = ("heads", "num_heads", "num_attention_heads")
        return next((int(getattr(attention, name)) for name in names if hasattr(attention, name)), None)

    def attention_width(self, attention: torch.nn.Module) -> int | None:
        """Heads times head_dim of one of the `self_attentions`; None where it is the width of the output."""
        found: int | None = getattr(attention, "inner_dim", None)
        return found

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Changes to a configuration that make a twin of it: a small model with the same layout.

        Two layers of each kind, two heads, little text and feed-forward. What attention is made of stays: head_dim,
        patches, positions, norms, and what the model is conditioned on.

        Args:
            config: all settings of a transformer, with the class's defaults for what its checkpoint leaves out.

        Raises:
            NotImplementedError: this adapter describes no twin.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no twin; define its methods tiny and example")

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        """Arguments of `forward`, by name, for a random video of `view` (frames, height, width) tokens.

        Where the model takes text of different lengths, the samples of a batch differ in it.

        Raises:
            NotImplementedError: this adapter describes no twin, or the model takes no batch.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no twin; define its methods tiny and example")


TEXT_TOKENS = 7  # of an example


def text_mask(batch: int, tokens: int = TEXT_TOKENS) -> torch.Tensor:
    """Which text tokens of an example are real, bool [batch, tokens]: the first ones, as many as in no other sample."""
    real = torch.tensor([tokens - 3, tokens, 1])[torch.arange(batch) % 3]
    return torch.arange(tokens) < real[:, None]


class WrappedProcessor:
    """Base of our processors: passes on what diffusers sets on a processor to the one it replaces."""

    def __init__(self, original: Any, layer: SparseLayer):
        self.original = original
        self.layer = layer

    def unsupported(self, attention_mask: torch.Tensor | None = None) -> str | None:
        """The reason why a call cannot be sparse, an unknown mask; None if it can."""
        return None if attention_mask is None else "the call has an attention mask"

    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config


class UnknownProcessor(WrappedProcessor):
    """Runs a processor that no adapter knows, with all its arguments, and records why it is dense."""

    def __init__(self, original: Any, layer: SparseLayer, reason: str):
        super().__init__(original, layer)
        self.reason = reason

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        # Packages that quantise, as for SVDQuant, may join the projections and set a processor that parts them.
        fused = hasattr(attn, "to_qkv") and not hasattr(attn, "to_q")
        call = self.layer.begin(f"its projections are fused in to_qkv, and {self.reason}" if fused else self.reason)
        return self.layer.end(call, self.original(attn, *args, **kwargs))


@cache
def _unknown_as(kind: Any) -> type[UnknownProcessor]:
    """`UnknownProcessor` with the arguments of another class.

    Attention modules of diffusers hand on only those arguments that the signature of `processor.__call__` names. It is
    one class for all layers, so that they share a graph of `torch.compile`.
    """

    def call(self: UnknownProcessor, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return UnknownProcessor.__call__(self, attn, *args, **kwargs)

    members = {"__call__": wraps(kind.__call__)(call), "__module__": __name__}
    return type(UnknownProcessor.__name__, (UnknownProcessor,), members)
