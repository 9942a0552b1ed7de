"""What an adapter is: the one place that knows a diffusers model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch

from vidsparse.grid import VideoGrid

# Attention of query, key and value [batch, tokens, heads, head_dim], and `extra_valid`, int [batch], where some of the
# prefix and suffix tokens are padding: how many of them, in sequence order, are real. A model that has learned a gate
# for the output, as Video Sparse Attention trains one, gives `gate`, of the shape of the query.
Attend = Callable[..., torch.Tensor]
# Random normal numbers of a shape: `noise(batch, tokens, channels)`.
Noise = Callable[..., torch.Tensor]
# What a processor gives: hidden states, or those of video and text.
Output = TypeVar("Output", torch.Tensor, tuple[torch.Tensor, ...])


class SparseLayer(Protocol):
    """What a processor asks of the library, once for each call of its layer."""

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the present forward call; not known where the call cannot be sparse."""

    def run(
        self,
        dense: Callable[[], Output],
        sparse: Callable[[Attend], Output],
        unsupported: str | None = None,
    ) -> Output:
        """Run one of two ways through the layer.

        Args:
            dense: calls the model's own processor.
            sparse: computes query, key and value [batch, tokens, heads, head_dim], hands them to the function it gets
                (`Attend`), and projects what that returns.
            unsupported: why this call cannot be sparse, or None.
        """


class Adapter(ABC):
    """Puts sparse attention into the transformers of one family.

    Attributes:
        family: what its models are called. tasks: what they make. layout: where tokens that are no video stand.
        gated: whether its processors read the gates that `load_gates` gives.
        vae_stride: frames, and pixels in height and width, that a latent of the family's first VAE covers.
    """

    family = tasks = layout = ""
    gated = False
    vae_stride: tuple[int, int] = (4, 8)

    @abstractmethod
    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The attention modules in which video tokens see video tokens, by module name, in the order they run."""

    @abstractmethod
    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        """The token grid of a forward call, from the arguments of `forward` by name.

        Raises:
            NotImplementedError: tokens in no order that a grid can tell; the call runs dense, for this reason.
        """

    @abstractmethod
    def processor(self, original: Any, layer: SparseLayer) -> Any:
        """An attention processor that runs `layer`, and `original` for dense calls."""

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The noise of a forward call, from 0 to 1000 and falling within a run; the most where tokens differ."""
        del transformer
        return float(torch.as_tensor(call["timestep"]).max())

    def patch(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Latents (frames, height, width) that a token covers, from all settings of a transformer."""
        size = config.get("patch_size", 1)
        return tuple(size) if isinstance(size, (tuple, list)) else (config.get("patch_size_t") or 1, size, size)

    def latents(self, frames: int) -> tuple[int, int] | None:
        """For a VAE whose latent frames are not 1 + n, of 1 + n * stride frames: the frames nearest to `frames` that it
        produces, and how many latent frames these are. None: it is a usual one."""
        del frames
        return None

    def heads(self, attention: torch.nn.Module) -> int | None:
        """How many heads one of the `self_attentions` has; None where that is not known."""
        names = ("heads", "num_heads", "num_attention_heads")
        return next((int(getattr(attention, name)) for name in names if hasattr(attention, name)), None)

    def width(self, attention: torch.nn.Module) -> int | None:
        """Heads times head_dim of one of the `self_attentions`; None where it is the width of what comes out."""
        width: int | None = getattr(attention, "inner_dim", None)
        return width

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What to change in a configuration, so that a twin remains: a small model with the same layout.

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
        """Why a call cannot be sparse: a mask whose form nobody knows, or tokens on other devices; None if it can."""
        if attention_mask is not None:
            return "the call has an attention mask"
        return None if getattr(self.original, "_parallel_config", None) is None else "context parallelism is on"

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
