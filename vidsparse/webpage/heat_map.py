"""What ran, by step and layer, as the data of a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Cell:
    """The calls of one layer in one step.

    Attributes:
        sparse, dense: how many calls ran so.
        density: of pairs of tiles, the mean of the sparse calls; 1 where there is none.
        reasons: index of each reason of dense calls in the reasons of the map.
    """

    sparse: int
    dense: int
    density: float
    reasons: list[int]


def heat_map(attention: Mapping[str, Any]) -> dict[str, Any] | None:
    """The data of a heat map; None where no attention has run.

    Args:
        attention: what `Report.to_dict` returns, or the same read from JSON.

    Returns:
        "reasons": each with its "text" and "count" of calls; "transformers": each with "name", "layers", "steps",
        "cells", which are [layer, step, sparse, dense, density, reasons], and "skipped": [step, calls, by].
    """
    calls, reasons = attention["calls"], attention["dense_reasons"]
    if not calls:
        return None
    index = {reason: number for number, reason in enumerate(reasons)}
    cells: dict[str, dict[tuple[int, int], Cell]] = {}
    for call in calls:
        place = call["layer"], call["step"]
        cell = cells.setdefault(call["transformer"], {}).setdefault(place, Cell(0, 0, 0.0, []))
        if call["reason"] is None:
            cell.density += call["calls"] * call["density"]
            cell.sparse += call["calls"]
        else:
            cell.dense += call["calls"]
            if (number := index[call["reason"]]) not in cell.reasons:
                cell.reasons.append(number)
    return {
        "reasons": [{"text": text, "count": count} for text, count in reasons.items()],
        "transformers": [_transformer(name, found, attention["skipped"]) for name, found in cells.items()],
    }


def _transformer(name: str, cells: Mapping[tuple[int, int], Cell], skipped: list[Mapping[str, Any]]) -> dict[str, Any]:
    left_out = [[one["step"], one["calls"], one["by"]] for one in skipped if one["transformer"] == name]
    return {
        "name": name,
        "layers": max(layer for layer, _ in cells) + 1,
        "steps": max([step for _, step in cells] + [one[0] for one in left_out]) + 1,
        "cells": [
            [layer, step, cell.sparse, cell.dense, cell.density / cell.sparse if cell.sparse else 1.0, cell.reasons]
            for (layer, step), cell in sorted(cells.items())
        ],
        "skipped": left_out,
    }
