"""The data of a heat map: sums over calls, reasons by index, and what was skipped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vidsparse.runtime.report import LayerCall, Report, Skipped
from vidsparse.webpage.heat_map import heat_map

ASKED, MASK = "the pattern asks for it", "an attention mask"


def ran(layer: int, step: int, reason: str | None = None, density: float = 0.5, **others: Any) -> LayerCall:
    given = {"transformer": "transformer", "tokens": 64, "impl": "cpu", "fallback": None, "tiles": ((1, 8, 8),)}
    return LayerCall(layer=layer, step=step, reason=reason, dense_flops=1.0, density=density, **given | others)


def test_cells_are_means_of_the_sparse_calls_and_name_reasons() -> None:
    calls = (
        ran(0, 0, ASKED, 1.0, calls=2),
        ran(0, 1, density=0.2, calls=3),
        ran(0, 1, density=0.6, tokens=32),
        ran(0, 1, MASK, 1.0),
        ran(2, 1, ASKED, 1.0),
        ran(1, 0, density=0.4, transformer="transformer_2"),
    )
    report = Report(calls, "Radial()", skipped=(Skipped("transformer", 3, 6, "the schedule"),))
    found = heat_map(json.loads(json.dumps(report.to_dict())))
    assert found is not None and found == heat_map(report.to_dict())
    assert found["reasons"] == [{"text": ASKED, "count": 3}, {"text": MASK, "count": 1}]
    first, second = found["transformers"]
    assert (first["name"], first["layers"], first["steps"]) == ("transformer", 3, 4)
    assert first["skipped"] == [[3, 6, "the schedule"]] and not second["skipped"]
    assert [cell[:2] for cell in first["cells"]] == [[0, 0], [0, 1], [2, 1]]
    assert first["cells"][0][2:] == [0, 2, 1.0, [0]]
    assert first["cells"][1][2:] == [4, 1, pytest.approx(0.3), [1]]
    assert (second["layers"], second["steps"]) == (2, 1)


def test_nothing_has_run() -> None:
    assert heat_map(Report((), "Radial()").to_dict()) is None
