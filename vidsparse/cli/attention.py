"""The attention that the options of a request ask for: a pattern in its schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidsparse.cli.messages import note

if TYPE_CHECKING:
    from vidsparse import Pattern
    from vidsparse.cli.request import Request

PATTERN = "radial"
ENDS = "dense_steps", "dense_last_steps"


def scheduled_pattern(request: Request) -> Pattern:
    """The pattern, in its schedule: those of `request.start`, changed by what is given.

    Where `start` or what is given has clips (`SlidingClip`), the schedule is inside them.

    Raises:
        ValueError: an unknown pattern, or an option that it does not take or whose value is wrong.
    """
    from vidsparse import Dense, SlidingClip, StepBudget

    known, _ = request.start
    clip = known if isinstance(known, SlidingClip) else None
    known = known if clip is None else clip.pattern
    pattern = _unscheduled(request, known)
    if isinstance(pattern, SlidingClip):
        clip, pattern = pattern, pattern.pattern
    elif isinstance(pattern, Dense):
        clip = None
    scheduled = _scheduled(request, known, pattern)
    if clip is None:
        return scheduled
    if isinstance(scheduled, StepBudget):  # which is about whole steps
        return replace(scheduled, pattern=replace(clip, pattern=scheduled.pattern))
    return replace(clip, pattern=scheduled)


def _unscheduled(request: Request, known: Pattern | None) -> Pattern:
    """The pattern that is given, else `known` with what is given."""
    from vidsparse.patterns.foreign import foreign_class
    from vidsparse.patterns.names import build_pattern, change_pattern
    from vidsparse.patterns.schedule import bare

    # A LoRA that was trained with the user's own class has its settings.
    if known is None or (request.pattern is not None and type(bare(known)) is not foreign_class(request.pattern)):
        return build_pattern(request.pattern or PATTERN, request.density, request.settings)
    return change_pattern(bare(known), request.density, request.settings)


def _scheduled(request: Request, known: Pattern | None, pattern: Pattern) -> Pattern:
    """The pattern in the schedule of `known`, changed by what is given."""
    from vidsparse import Dense, StepSchedule
    from vidsparse.generation.dense_steps import default_dense_steps

    layers = None if request.dense_layers is None else integers("--dense-layers", request.dense_layers)
    asked = {"dense_steps": request.dense_steps, "dense_last_steps": request.dense_last_steps, "dense_layers": layers}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if request.budget is not None:
        return _within_budget(request, request.budget, known, pattern, given)
    if request.sparse_cost is not None:
        raise ValueError("--sparse-cost says what a step costs of a --budget; give that too, or leave it out")
    if isinstance(pattern, Dense):
        return pattern
    if isinstance(known, StepSchedule):
        schedule = known
    elif known is not None or request.dense_steps is not None:
        schedule = StepSchedule(pattern)
    else:
        schedule = StepSchedule(pattern, default_dense_steps(request.denoising_steps))
    schedule = replace(schedule, pattern=pattern, **given)
    return pattern if schedule == StepSchedule(pattern) else schedule


def tuned_pattern(request: Request, source: str) -> Pattern:
    """The pattern of a profile for the size of the video, with a note where that is another one.

    Raises:
        ValueError: an option beside it that chooses a pattern; a profile of another model, or one that is damaged.
        OSError: the profile cannot be read.
    """
    from vidsparse import load_profile
    from vidsparse.generation.frames import geometry
    from vidsparse.generation.transformers import configured_transformers, without_weights

    for name in ("preset", "pattern", "density", "settings"):
        if getattr(request, name) is not None:
            option = "--set" if name == "settings" else f"--{name}"
            raise ValueError(f"--profile {source} chooses the pattern; leave out {option}")
    profile = load_profile(source)
    transformer = without_weights(*next(iter(configured_transformers(request.model).values())))
    frames, height, width = request.size(
        {"num_frames": request.frames, "height": request.height, "width": request.width}
    )
    if not (frames and height and width):
        raise ValueError(f"--profile {source} needs the size of the video; give --frames, --height and --width")
    grid = geometry(request.model).grid(frames, height, width)
    if grid.view != profile.grid:
        known = f"{profile.frames} frames of {profile.width}x{profile.height}"
        note(f"{source} was tuned for {known}: its windows are scaled to {frames} frames of {width}x{height}")
    return profile.pattern_for(transformer, grid)


def _within_budget(
    request: Request, budget: float, known: Pattern | None, pattern: Pattern, given: dict[str, Any]
) -> Pattern:
    """The pattern in a `StepBudget`, with the dense steps and layers that are given, else of `known`, else its own."""
    from vidsparse import Dense, StepBudget, StepSchedule

    schedule = known if isinstance(known, StepSchedule) else StepSchedule(pattern)
    ends: dict[str, int] = {}
    if schedule is known:  # a schedule may count in shares of the steps
        steps = request.denoising_steps
        first, after = schedule.sparse_range(steps)
        ends = {"dense_steps": first, "dense_last_steps": steps - after}
    ends |= {name: given[name] for name in ENDS if name in given}
    schedule = replace(schedule, **given | dict.fromkeys(ENDS, 0), pattern=pattern)
    usual = 1.0 if isinstance(pattern, Dense) else StepBudget.sparse_cost
    inner = pattern if schedule == StepSchedule(pattern) else schedule
    return StepBudget(inner, budget, usual if request.sparse_cost is None else request.sparse_cost, **ends)


def biased(pattern: Pattern, asked: str | None) -> Pattern:
    """The pattern with the bias of --temporal-bias STRENGTH or STRENGTH,WIDTH; the pattern itself without one.

    Raises:
        ValueError: something else than one or two numbers, or a pattern that has a bias already.
    """
    from vidsparse import TemporalBias

    if asked is None:
        return pattern
    strength, _, width = asked.partition(",")
    try:
        given = float(strength), float(width or TemporalBias.width)
    except ValueError:
        raise ValueError(
            f"--temporal-bias {asked!r} must be STRENGTH or STRENGTH,WIDTH, such as 1.5 or 1.5,4"
        ) from None
    try:
        return TemporalBias(pattern, *given)
    except ValueError as error:
        raise ValueError(f"--temporal-bias {asked}: {error}") from None


def integers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of an option, such as "0,1".

    Raises:
        ValueError: something else; names the option.
    """
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise ValueError(f"{option} {text!r} must be whole numbers with commas, such as 0,1") from None
