"""Stands for pipelines that were loaded, so that a program for a large model runs on its small twin."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import diffusers
import numpy as np
import pytest
import torch
from twins import twin

SIZE = (5, 6, 8)  # tokens of a twin's video
STEPS = 8


class Loaded:
    """A small random transformer, called as often as there are steps. A call must fit the signature of the pipeline's
    own; its video is five gray frames."""

    vae = vocoder = MagicMock()

    def __init__(self, cls: Any, transformer: str):
        self.call = cls.__call__
        self.twin = twin(transformer)
        self.transformer = self.twin.build()
        self.scheduler = SimpleNamespace(timesteps=torch.linspace(900, 100, STEPS), config={}, step_index=None)
        self.placed = False

    def to(self, device: str) -> Loaded:
        self.placed = True
        return self

    def enable_model_cpu_offload(self) -> None:
        self.placed = True

    def load_components(self, **settings: Any) -> None:
        assert settings == {"torch_dtype": torch.bfloat16}

    def __call__(self, *args: Any, **given: Any) -> Any:
        assert self.placed, "the program does not say where the pipeline runs"
        inspect.signature(self.call).bind(self, *args, **given)
        for _ in self.scheduler.timesteps:
            with torch.no_grad():
                self.transformer(**self.twin.arguments(self.transformer, SIZE))
        frames = np.full((5, 32, 32, 3), 0.5, np.float32)
        if given.get("return_dict") is False:
            return frames[None], MagicMock()  # a batch of videos, and of sounds
        return [frames] if "output" in given else SimpleNamespace(frames=[frames], video=frames)


def transformer_of(cls: Any) -> str:
    """The class of transformers that a pipeline says it takes."""
    return str(inspect.signature(cls.__init__).parameters["transformer"].annotation).rpartition(".")[2].strip("'>\" ")


def load_twins(monkeypatch: pytest.MonkeyPatch, transformer: str) -> None:
    """Let every pipeline of diffusers load as `Loaded`, of this class of transformers, and images out of nothing."""

    def load(cls: Any, source: str, **settings: Any) -> Loaded:
        if cls is not diffusers.ModularPipeline:  # which finds its class in the checkpoint
            assert transformer in transformer_of(cls)
        return Loaded(cls, transformer)

    def encode(video: Any, output_path: str, **sound: Any) -> None:
        Path(output_path).write_bytes(b"needs PyAV")

    import transformers

    for base in (diffusers.DiffusionPipeline, diffusers.ModularPipeline):
        monkeypatch.setattr(base, "from_pretrained", classmethod(load))
    for part in (diffusers.ModelMixin, transformers.SiglipImageProcessor, transformers.SiglipVisionModel):
        monkeypatch.setattr(part, "from_pretrained", MagicMock())
    monkeypatch.setattr(diffusers.utils, "load_image", MagicMock())
    monkeypatch.setattr(diffusers.utils, "encode_video", encode, raising=False)
