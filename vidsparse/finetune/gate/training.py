"""The training loop of a learned gate: the model runs dense and frozen, each layer teaches its gate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vidsparse.finetune.checkpoint import load_checkpoint, save_checkpoint
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.families import task_for
from vidsparse.finetune.gate.teacher import GateTeacher, Lesson
from vidsparse.finetune.identity import ORDER, check_same, comparable
from vidsparse.finetune.noise import bounds_of, by_noise, sparse_levels
from vidsparse.finetune.objective import ExampleStream
from vidsparse.finetune.optim.optimizers import build_optimizer, set_rates
from vidsparse.finetune.process.stopping import Stop, Stopped
from vidsparse.finetune.record import log
from vidsparse.finetune.settings import Settings
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.patterns import LearnedGate, Pattern, StepSchedule
from vidsparse.patterns.gate_file import GateHeader, gate_name, save_gate
from vidsparse.patterns.gate_weights import GateWeights
from vidsparse.patterns.schedule import bare
from vidsparse.runtime.model_settings import settings_of
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sparsify import sparsify

if TYPE_CHECKING:
    from vidsparse.finetune.data.cache import Encoded


def gate_in(pattern: Pattern) -> LearnedGate:
    """The gate that a training is for. Raises ValueError for a pattern that is none, or has more than a schedule."""
    gate = bare(pattern)
    held: Any = pattern
    while isinstance(held, StepSchedule):
        held = held.pattern
    if not isinstance(gate, LearnedGate) or held is not gate:
        raise ValueError(f"pattern={pattern!r} must be a LearnedGate, alone or in a StepSchedule, to train a gate")
    return gate


def _without_use(gate: LearnedGate) -> LearnedGate:
    """A gate without what decides nothing of its training: where it will be, and how much it will keep."""
    return LearnedGate("gate", density=1.0, tile=gate.tile)


def with_pattern(schedule: Pattern, pattern: Pattern) -> Pattern:
    """The same schedule around another pattern."""
    if not isinstance(schedule, StepSchedule):
        return pattern
    return replace(schedule, pattern=with_pattern(schedule.pattern, pattern))


class GateTraining:
    """One training of the gate of one transformer.

    Args:
        pipe: its transformer computes dense, on `device`, and does not change.
        examples: the encoded videos and captions.
        settings: of the training; `pattern` holds the `LearnedGate`. Those of a LoRA mean nothing here.
        folder: receives the gate, and a folder named as the transformer with `checkpoints` and `log.jsonl`. With a
            checkpoint in it, the training resumes.
        device: that computes.
        base: name of the model, for the file.
        rows: query tiles of each layer and video that teach.
        stop: signals that ask the training to stop.
        say: called with messages for the user, one line each.

    Raises:
        ValueError: a checkpoint of other settings or of another model.
    """

    def __init__(
        self,
        pipe: Any,
        examples: Encoded,
        settings: Settings,
        folder: Path,
        device: torch.device,
        base: str,
        rows: int = 32,
        stop: Stop | None = None,
        say: Callable[[str], None] = print,
    ):
        self.settings, self.folder, self.device = settings, folder, device
        self.own, self.stop, self.say = folder / settings.transformer, stop or Stop(), say
        self.module: Any = getattr(pipe, settings.transformer)
        self.task, self.gate = task_for(pipe), gate_in(settings.pattern)
        scheduler = build_scheduler(pipe.scheduler, settings.sampler, settings.flow_shift)
        levels = self.task.levels(scheduler, settings.inference_steps, examples.view)
        schedule = by_noise(settings.pattern, scheduler, settings.inference_steps, levels)
        bounds, sparse = bounds_of(pipe.config, settings.transformer), sparse_levels(schedule)
        self.stream = ExampleStream(
            examples,
            seed=settings.seed,
            batch=settings.batch,
            rank=0,
            world=1,
            shift=self.task.shift(scheduler, examples.view),
            bounds=(max(bounds[0], sparse[0]), min(bounds[1], sparse[1])),  # dense steps need no gate
            caption_dropout=settings.share_without_caption,
            sampling=settings.level_sampling,
            shift_of=lambda latents: self.task.shift(scheduler, (latents.shape[1], latents.shape[2], latents.shape[3])),
        )
        adapter = adapter_for(self.module)
        attentions = list(adapter.self_attentions(self.module).values())
        heads = cast("int", adapter.heads(attentions[0]))
        head_dim = cast("int", adapter.attention_width(attentions[0])) // heads
        self.header = GateHeader(
            transformer=settings.transformer,
            model=type(self.module).__name__,
            config=settings_of(self.module),
            layers=len(attentions),
            heads=heads,
            head_dim=head_dim,
            tile=self.gate.tile,
            base=base,
        )
        self.weights = [
            GateWeights(*(torch.nn.Parameter(x.to(device)) for x in GateWeights.untrained(heads, head_dim)))
            for _ in attentions
        ]
        self.parameters = [x for layer in self.weights for x in layer]
        groups = [{"params": self.parameters, "factor": 1.0}]
        self.optimizer = build_optimizer(
            settings.optimizer, groups, settings.learning_rate, settings.weight_decay, device
        )
        self.generator = torch.Generator()
        self.lesson, self.step, self.seconds, self.logged = Lesson(), 0, 0.0, 0
        factor = 1.0 / (settings.batch * len(attentions))
        teacher = GateTeacher(
            self.gate.keep, self.gate.tile, self.weights, factor, rows, self.generator, lesson=self.lesson
        )
        self.pattern = with_pattern(schedule, teacher)
        self.identity = {
            "model": fingerprint(self.module),
            "data": examples.fingerprint,
            "order": ORDER,
            "rows": str(rows),
            "shift": str(self.stream.shift),
            "videos of a step": str(settings.batch),
            **comparable(replace(settings, pattern=with_pattern(settings.pattern, _without_use(self.gate)))),
        }
        self._resume()

    def train(self, progress: Callable[[int, float], None] = lambda step, loss: None) -> Path:
        """Train up to `settings.steps`, and write the gate.

        Args:
            progress: called after each step with the number of completed steps and the divergence of this step.

        Returns:
            The file of the gate.

        Raises:
            RuntimeError: the divergence is not finite.
            Stopped: a signal asked for it; the step is finished and saved.
        """
        log.forget_after(self.own, self.step or -1)
        modes = [(part, part.training) for part in self.module.modules()]
        with contextlib.ExitStack() as changes:
            for part, training in modes:
                changes.callback(setattr, part, "training", training)
            changes.callback(self.module.to, self.module.device)
            self.module.to(self.device).eval()
            run = changes.enter_context(sparsify(self.module, self.pattern))
            with self.stop.patient():
                while self.step < self.settings.steps:
                    loss = self._learn(run.expect_another_video)
                    run.reset()
                    self._after(loss)
                    progress(self.step, loss)
        file = self.folder / gate_name(self.settings.transformer)
        save_gate(file, replace(self.header, steps=self.step), self.weights)
        return file

    def _learn(self, before_video: Callable[[], None]) -> float:
        """Make one optimizer step; returns the divergence."""
        started, before = time.perf_counter(), (float(self.lesson.divergence), self.lesson.layers)
        set_rates(self.optimizer, self.settings.rate(self.step))
        self.optimizer.zero_grad()
        self.generator.manual_seed(self.settings.seed * 1_000_003 + self.step)
        for part in range(self.settings.batch):
            example = self.stream.draw(self.step, part).to(self.device)
            before_video()
            with torch.no_grad():
                arguments = self.task.arguments(self.task.noisy(example), example, self.module.dtype)
                self.module(**arguments, return_dict=False)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        layers = self.lesson.layers - before[1]
        if not layers:
            raise RuntimeError("no layer asked the gate: all calls ran dense; leave some layers and steps sparse")
        return (float(self.lesson.divergence) - before[0]) / layers

    def _after(self, loss: float) -> None:
        settings, last, asked = self.settings, self.step == self.settings.steps, self.stop.asked
        if not loss < float("inf"):
            raise RuntimeError(
                f"the divergence is {loss} after {self.step} steps; try a lower learning rate, in another folder"
            )
        if last or self.step % settings.log_every == 0:
            line = {"step": self.step, **self.lesson.means(), "learning_rate": settings.rate(self.step - 1)}
            log.append(self.own, {**line, "seconds": round(self.seconds, 2)})
            self.lesson.clear()
        if last or asked or self.step % settings.save_every == 0:
            state = {
                "identity": self.identity,
                "seconds": self.seconds,
                "lesson": {name: float(value) for name, value in vars(self.lesson).items()},
                "weights": [x.detach().cpu() for x in self.parameters],
                "optimizer": self.optimizer.state_dict(),
            }
            save_checkpoint(self.own / "checkpoints", self.step, state, settings.keep)
            self.stop.saved = self.step
        if asked and not last:
            raise Stopped(asked, self.stop.saved)

    def _resume(self) -> None:
        self.own.mkdir(parents=True, exist_ok=True)
        state, broken = load_checkpoint(self.own / "checkpoints")
        for path in broken:
            self.say(f"{path} cannot be read and is skipped")
        if state is None:
            return
        check_same(state["identity"], self.identity, self.own, self.say)
        for weight, known in zip(self.parameters, state["weights"], strict=True):
            weight.data.copy_(known)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.stop.saved = state["step"], state["seconds"], state["step"]
        vars(self.lesson).update({**state["lesson"], "layers": int(state["lesson"]["layers"])})
        self.say(f"resuming from step {self.step}")
