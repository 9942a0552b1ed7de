"""Trackers of experiments that accelerate writes to, by name."""

from __future__ import annotations

from importlib.util import find_spec

TRACKERS = ("tensorboard", "wandb")
CHOICES = ("auto", *TRACKERS, "all", "none")


def tracker_names(log_with: str) -> tuple[str, ...]:
    """The trackers of a training.

    Args:
        log_with: a tracker; "all"; "none"; or "auto", TensorBoard where it is installed.

    Raises:
        ValueError: an unknown name.
        ImportError: the package of a tracker that is asked for by name is missing.
    """
    if log_with not in CHOICES:
        raise ValueError(f"log_with={log_with!r} is unknown; choose one of {', '.join(CHOICES)}")
    if log_with == "none":
        return ()
    if log_with == "auto":
        return ("tensorboard",) if find_spec("tensorboard") else ()
    asked = TRACKERS if log_with == "all" else (log_with,)
    missing = [name for name in asked if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"log_with={log_with!r} needs {' and '.join(missing)}, which cannot be imported: "
            f"pip install {' '.join(missing)}"
        )
    return asked
