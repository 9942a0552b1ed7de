"""How noise becomes a video: along one path, or with fresh noise in every step."""

from __future__ import annotations

from typing import Any

SAMPLERS = ("own", "sde")
OTHER_NOISE = 0x51F15EED  # changes the low bits of a seed, the only ones that a CPU's generator reads


def build_scheduler(scheduler: Any, sampler: str | None = None, flow_shift: float | None = None) -> Any:
    """The scheduler of a diffusers pipeline with another solver or other noise levels.

        pipe.scheduler = build_scheduler(pipe.scheduler, "sde", flow_shift=8.0)

    In a video longer than those of the training, parts that see little of each other may disagree, such as on the place
    of an object. Fresh noise in each step, and more steps at high noise, let them converge (benchmarks/NOTES.md,
    entry 33).

    The solver of "sde" is SDE-DPM-Solver++ of second order (Lu et al., arXiv 2211.01095), as diffusers has it. A
    pipeline draws the noise from PyTorch's global generator, which `seed_steps` seeds.

    Args:
        scheduler: of flow matching, with a constant shift. It stays as it is.
        sampler: "sde", or "own", which None means too.
        flow_shift: noise levels are flow_shift * u / (1 + (flow_shift - 1) * u) of evenly spaced u: the higher, the
            more steps are at high noise. None: that of the scheduler.

    Returns:
        A new scheduler, or `scheduler` itself where nothing changes.

    Raises:
        ValueError: an unknown sampler, or a shift that is not above 0.
        NotImplementedError: a scheduler of another kind.
    """
    check_sampler(sampler, flow_shift)
    if sampler != "sde" and flow_shift is None:
        return scheduler
    from diffusers import DPMSolverMultistepScheduler

    name, config = type(scheduler).__name__, scheduler.config
    flow = config.get("prediction_type", "flow_prediction") == "flow_prediction"
    key = "flow_shift" if "flow_shift" in config else "shift"
    if not flow or key not in config or config.get("use_dynamic_shifting", False):
        raise NotImplementedError(f"{name}: only schedulers of flow matching with a constant shift take another one")
    shift = config[key] if flow_shift is None else flow_shift
    if sampler != "sde":
        return type(scheduler).from_config(config, **{key: shift})
    if DPMSolverMultistepScheduler not in scheduler.compatibles:
        raise NotImplementedError(
            f"{name} has no stochastic counterpart in diffusers; sampler='sde' is for pipelines with UniPC or "
            "DPM-Solver, as Wan's are"
        )
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++", flow_shift=shift)


def check_sampler(sampler: str | None, flow_shift: float | None) -> None:
    """Refuse a sampler or a shift that `build_scheduler` does not take.

    Raises:
        ValueError: an unknown sampler, or a shift that is not above 0.
    """
    if sampler not in (None, *SAMPLERS):
        raise ValueError(f"sampler={sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if flow_shift is not None and not flow_shift > 0:
        raise ValueError(f"flow_shift={flow_shift} must be above 0; Wan has 3 to 5")


def seed_steps(seed: int) -> None:
    """Seed the noise that a scheduler draws in its steps, which a pipeline's `generator` does not reach.

    Seeds PyTorch's global generators, with a value derived from `seed` so that step noise differs from the initial
    latents.
    """
    import torch

    torch.manual_seed(seed ^ OTHER_NOISE)
