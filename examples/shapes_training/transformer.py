"""Trains the transformer by a plan, and keeps its weights in one small file with the place in the plan."""

from __future__ import annotations

import math
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flow import Flow, Prompts
from latents import Pool, Statistics, read_pool
from optimization import SAVE_SECONDS, SEED, Stage, optimizers
from outlines import OutlineReader
from pattern import read_pattern
from plan import Phase, Plan
from safetensors import safe_open
from safetensors.torch import save_file
from stored_attention import attention_stored
from tokens import coarsen, refine, widen_positions

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.shapes.model import build_transformer, load_pipeline

if TYPE_CHECKING:
    from diffusers import WanPipeline, WanTransformer3DModel

SKIP = ("patch_embedding", "proj_out", "scale_shift_table")  # AdamW has these
READER = "reader."


@dataclass(frozen=True)
class Weights:
    """What is kept of a training: averaged weights, and how far in the plan they are.

    Attributes:
        transformer: its state.
        patch: the size of its tokens, in latents.
        reader: the outline reader's state, or nothing yet.
        phase: name of the phase that made them, or "" before the first.
        step: of that phase.
        done: whether the phase is over.
        plain: whether positions are counted in tokens.
    """

    transformer: dict[str, torch.Tensor]
    patch: int
    reader: dict[str, torch.Tensor]
    phase: str = ""
    step: int = 0
    done: bool = False
    plain: bool = False

    @staticmethod
    def read(path: Path) -> Weights:
        """Read a file that `write` wrote, in float32."""
        with safe_open(path, "pt") as file:
            place = file.metadata()
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        return Weights(
            {k: v for k, v in tensors.items() if not k.startswith(READER)},
            int(place["patch"]),
            {k.removeprefix(READER): v for k, v in tensors.items() if k.startswith(READER)},
            place["phase"],
            int(place["step"]),
            place["done"] == "True",
            place.get("plain") == "True",
        )

    def write(self, path: Path) -> None:
        """Write float16 tensors, as a whole file or not at all."""
        named = self.transformer | {READER + key: value for key, value in self.reader.items()}
        tensors = {key: value.detach().half().cpu().contiguous() for key, value in named.items()}
        place = {"patch": self.patch, "phase": self.phase, "step": self.step, "done": self.done, "plain": self.plain}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {key: str(value) for key, value in place.items()})

    def at(self, patch: int, fresh: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The transformer's state for tokens of another size; `fresh` is the state of a new one of that size."""
        state, size = self.transformer, self.patch
        if patch > size:
            return coarsen(state, fresh)
        while size > patch:
            state, size = refine(state, size), size // 2
        return state


def file_of(phase: str) -> str:
    """The name of the file with the weights of a phase."""
    return f"{phase}.safetensors"


def newest_weights(phase: str, *folders: Path) -> Weights | None:
    """The weights of a phase from the first of some folders that has them."""
    found = (folder / file_of(phase) for folder in folders)
    return next((Weights.read(path) for path in found if path.is_file()), None)


def start_weights() -> Weights:
    """What a training from nothing begins with: the expert for low noise of `shapes`."""
    return Weights(load_pipeline().transformer_2.state_dict(), 1, {})


def build(
    weights: Weights, patch: int, device: str, plain: bool = False
) -> tuple[WanTransformer3DModel, OutlineReader]:
    """A transformer with tokens of a size, and the reader of outlines that listens to it."""
    torch.manual_seed(SEED)
    transformer = build_transformer(patch)
    if not plain:
        widen_positions(transformer.rope, patch)
    transformer.load_state_dict(weights.at(patch, transformer.state_dict()))
    reader = OutlineReader(transformer.blocks, transformer.patch_embedding.out_channels)
    if weights.reader:
        reader.load_state_dict(weights.reader)
    return transformer.to(device), reader.to(device)


@dataclass(frozen=True)
class Training:
    """A plan at work: what does not change from phase to phase.

    Attributes:
        plan: the phases.
        pipe: whose text encoder reads the prompts.
        statistics: of the latents.
        folder: of the checkpoints, the log, the latents in `latents` and the newest weights of each phase.
        kept: folder of weights to go on from where `folder` has none.
        held_out: videos that the log tells the flow loss of.
        device: "cpu" or "cuda".
        log_every: steps of a line of the log.
    """

    plan: Plan
    pipe: WanPipeline
    statistics: Statistics
    folder: Path
    kept: Path
    held_out: Pool
    device: str
    log_every: int = 20

    def run(self, name: str, until: float = math.inf) -> Weights:
        """Train a phase, where it has no weights yet those before it first, and return its weights.

        `until` is when to stop, as `time.time()` counts.
        """
        phase = self.plan.phase(name)
        weights = newest_weights(name, self.folder, self.kept)
        if weights is None:
            weights = self.run(phase.start, until) if phase.start else start_weights()
            if phase.start and not weights.done:
                return weights
        if (weights.phase, weights.done) == (name, True):
            return weights
        return self._run_phase(phase, weights, until)

    def flow(self, phase: Phase, weights: Weights) -> Flow:
        """What the steps of a phase ask of a transformer with these weights."""
        return Flow(
            *build(weights, phase.patch, self.device, phase.plain),
            Prompts(self.pipe, self.device),
            self.statistics,
            phase.batch,
            phase.parts,
            phase.levels,
            self.plan.shift,
            self.device,
        )

    def _run_phase(self, phase: Phase, weights: Weights, until: float) -> Weights:
        flow = self.flow(phase, weights)
        transformer, reader = flow.transformer, flow.reader
        rate = self.plan.learning_rate
        stage = Stage(
            phase.name,
            self.folder,
            {"transformer": transformer, "reader": reader},
            [*optimizers(transformer, rate, SKIP), *optimizers(reader, rate)],
            weights.step if weights.phase == phase.name else 0,
        )
        if self.device == "cuda":
            for block in transformer.blocks:
                block.compile()
        pool = read_pool(self.folder / "latents").to(self.device)
        parts = cycle(range(phase.parts))
        searched = read_pattern(self.folder, self.kept) if phase.searched else None
        pattern = searched or vidsparse.Radial(phase.density)

        def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
            frames = phase.short_frames if rng.random() < phase.short else None
            with self._attention(transformer, phase, pattern, frames, rng):
                return flow.loss(pool, rng, next(parts), frames)

        def at_save() -> dict[str, float]:
            nonlocal pool
            pool = read_pool(self.folder / "latents").to(self.device)
            self._keep(stage, phase)
            return {"pool": len(pool), **flow.examine(self.held_out.some(phase.asked))}

        stage.run(
            loss_of,
            phase.steps,
            phase.rate,
            self.log_every,
            budget=phase.seconds,
            until=until,
            parts=phase.parts,
            save_every=SAVE_SECONDS[self.device],
            at_save=at_save,
        )
        return self._keep(stage, phase)

    def _attention(
        self,
        transformer: WanTransformer3DModel,
        phase: Phase,
        pattern: vidsparse.Pattern,
        frames: int | None,
        rng: random.Random,
    ) -> AbstractContextManager[object]:
        """The attention of one part of a step, of whole clips or of their first latent frames."""
        if frames is None and rng.random() < phase.sparse:
            return vidsparse.sparsify(transformer, pattern)
        if self.device == "cpu" and (phase.patch > 1 or frames is not None):  # all pairs of 9,216 tokens do not fit
            return attention_stored(transformer.blocks)
        return nullcontext()

    def _keep(self, stage: Stage, phase: Phase) -> Weights:
        weights = Weights(
            stage.averages["transformer"],
            phase.patch,
            stage.averages["reader"],
            phase.name,
            stage.step,
            stage.done,
            phase.plain,
        )
        weights.write(self.folder / file_of(phase.name))
        return weights
