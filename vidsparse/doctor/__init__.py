"""Checks on a small random twin of a model that sparse attention computes what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vidsparse.doctor.agree import Failed, NotApplicable
from vidsparse.doctor.checks import CHECKS
from vidsparse.doctor.masked import masked
from vidsparse.doctor.twin import Twin

__all__ = ["CHECKS", "Result", "Twin", "diagnose", "examine", "masked"]


@dataclass(frozen=True)
class Result:
    """The result of a check: `detail` is the number, what is wrong, or why the check does not apply."""

    check: str
    outcome: Literal["ok", "failed", "not applicable"]
    detail: str


def diagnose(
    cls: type[Any], config: Mapping[str, Any] | None = None, progress: Callable[[str], object] = lambda check: None
) -> tuple[Result, ...]:
    """Run all checks on a class of transformers, of diffusers or registered by `register_adapter`.

    Nothing is loaded: the checks run on a small random model with the layout that the configuration gives.

    Args:
        cls: the class.
        config: settings of its `__init__`, as in a checkpoint's config.json; the class's defaults for all others.
        progress: called with the name of each check before it runs.

    Raises:
        NotImplementedError: a class that no adapter serves, or whose adapter describes no twin.
    """
    twin, results = Twin(cls, config), []
    for check in CHECKS:
        progress(check)
        results.append(examine(twin, check))
    return tuple(results)


def examine(twin: Twin, check: str) -> Result:
    """Run one check, by its name in `CHECKS`."""
    try:
        return Result(check, "ok", CHECKS[check].run(twin))
    except NotApplicable as reason:
        return Result(check, "not applicable", _line(reason))
    except Failed as failure:
        return Result(check, "failed", _line(failure))
    except Exception as error:  # an adapter may be wrong in any way, and the table must say so
        return Result(check, "failed", f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
