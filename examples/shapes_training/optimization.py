"""What every stage of the training does: optimizers, averages, a checkpoint to resume from, a log."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing

SEED = 2026
SAVE_SECONDS = {"cpu": 600, "cuda": 60}
STOP = threading.Event()  # set it, and a running stage ends with its step, at a checkpoint


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, as a whole or not at all."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def learning_rate_factor(progress: float, rate: tuple[float, float], steps: int, warmup: int = 50) -> float:
    """A line from one factor at progress 0 to another at progress 1; the optimizers warm up in their first steps."""
    return min(1.0, (steps + 1) / warmup) * (rate[0] + (rate[1] - rate[0]) * progress)


class Stage:
    """One resumable training: modules and their running averages, optimizers, a checkpoint, a log of JSON lines."""

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: dict[str, torch.nn.Module],
        optimizers: list[Any],
        step: int = 0,
    ):
        """Read the checkpoint `folder`/`name`.pt if there is one, else begin at `step`."""
        self.name, self.folder, self.modules, self.optimizers = name, folder, modules, optimizers
        self.path, self.step, self.first, self.seconds = folder / f"{name}.pt", step, step, 0.0
        self.done = False
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.averages = {key: {k: v.clone() for k, v in module.state_dict().items()} for key, module in modules.items()}
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            self.step, self.first, self.seconds = state["step"], state["first"], state["seconds"]
            for key, average in self.averages.items():
                for entry, value in average.items():
                    value.copy_(state["averages"][key][entry])
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            for o, kept in zip(optimizers, state["optimizers"], strict=True):
                o.load_state_dict(kept)

    def save(self) -> None:
        save(
            {
                "step": self.step,
                "first": self.first,
                "seconds": self.seconds,
                "modules": {key: module.state_dict() for key, module in self.modules.items()},
                "averages": self.averages,
                "optimizers": [o.state_dict() for o in self.optimizers],
            },
            self.path,
        )

    def run(
        self,
        loss_of: Callable[[random.Random], tuple[torch.Tensor, dict[str, float]]],
        steps: int,
        rate: tuple[float, float] = (1.0, 0.0),
        log_every: int = 20,
        budget: float = math.inf,
        until: float = math.inf,
        parts: int = 1,
        save_every: float = SAVE_SECONDS["cpu"],
        at_save: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Train until the stage is done, or until it is told to stop; then, and every so often, save.

        Args:
            loss_of: the loss of a step, or of each of its parts in turn, and numbers for the log. It gets the random
                numbers of the step, so that a resumed run sees what it would have seen.
            steps: of the stage in all.
            rate: factor of the learning rates at the beginning and at the end.
            log_every: steps for one line of the log.
            budget: seconds of the stage in all, after which it is done even if steps are left.
            until: when to stop, as `time.time()` counts; `STOP` stops it too.
            parts: of a step, one after the other in memory; the gradient is their mean.
            save_every: seconds from one checkpoint to the next.
            at_save: is called after a checkpoint; what it returns goes into the log.
        """
        saved = time.time()
        started = saved - self.seconds
        shown: dict[str, list[float]] = {}
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        stopping = False
        self.done = self.step >= steps or self.seconds > budget
        while not (self.done or stopping):
            torch.manual_seed(SEED + self.step)
            progress = min(1.0, max(self.step / steps, self.seconds / budget))
            factor = learning_rate_factor(progress, rate, self.step - self.first)
            for o, rates in zip(self.optimizers, self.base_rates, strict=True):
                for group, base in zip(o.param_groups, rates, strict=True):
                    group["lr"] = base * factor
            rng = random.Random(SEED * 1_000_003 + self.step)
            for _ in range(parts):
                loss, details = loss_of(rng)
                (loss / parts).backward()
                for key, value in {"loss": loss.item(), **details}.items():
                    shown.setdefault(key, []).append(value)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
            for o in self.optimizers:
                o.step()
                o.zero_grad(set_to_none=True)
            self.step += 1
            self.seconds = time.time() - started
            self.done = self.step >= steps or self.seconds > budget
            stopping = STOP.is_set() or time.time() > until
            self._average()
            if self.step % log_every == 0 or self.done or stopping:
                self.log({k: sum(v) / len(v) for k, v in shown.items()} | {"rate": factor})
                shown.clear()
            if time.time() - saved > save_every or self.done or stopping:
                self.save()
                if at_save is not None:
                    self.log(at_save())
                saved = time.time()

    def _average(self) -> None:
        keep = min(0.995, (self.step - self.first) / (self.step - self.first + 10))
        for key, module in self.modules.items():
            for entry, value in module.state_dict().items():
                self.averages[key][entry].lerp_(value, 1 - keep)

    def log(self, numbers: dict[str, float]) -> None:
        """Write numbers as one line of the log, if there are any, and print them."""
        if not numbers:
            return
        line: dict[str, object] = {"stage": self.name, "step": self.step, "seconds": round(self.seconds)}
        line |= {key: round(value, 4) for key, value in numbers.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


class MatrixMuon:
    """Muon for every weight of two or more dimensions, a convolution's kernel seen as the matrix [out, in * taps]."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float):
        self.parameters = parameters
        # The flat parameters share their memory with the module's own.
        self.flat = [torch.nn.Parameter(p.detach().view(p.shape[0], -1)) for p in parameters]
        self.muon = torch.optim.Muon(self.flat, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.state_dict, self.load_state_dict = self.muon.state_dict, self.muon.load_state_dict

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups

    def step(self) -> None:
        for p, flat in zip(self.parameters, self.flat, strict=True):
            flat.grad = None if p.grad is None else p.grad.view_as(flat)
        self.muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in (*self.parameters, *self.flat):
            p.grad = None


def optimizers(module: torch.nn.Module, lr: float, skip: tuple[str, ...] = ()) -> list[Any]:
    """Muon for the inner matrices; AdamW, at half the rate, for vectors and for names that start with one of `skip`."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 8 and not name.startswith(skip)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    return [MatrixMuon(inner, lr), torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.0)]
