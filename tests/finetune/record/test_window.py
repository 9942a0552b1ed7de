"""What a line of the log says."""

from __future__ import annotations

import json
from pathlib import Path

from vidsparse.finetune.learner import Learned
from vidsparse.finetune.record import log
from vidsparse.finetune.record.window import Window, loss_by_level

NAN = float("nan")


def test_means_leave_out_what_is_not_finite() -> None:
    window = Window()
    window.add(Learned([(0.1, 1.0), (0.6, 3.0)], norm=2.0, made=True, asked=0), 1.0)
    window.add(Learned([(0.1, NAN), (1.0, 5.0)], norm=NAN, made=False, asked=0), 3.0)
    window.attention += [(1, 0.5, 0.2), (1, 1.0, 0.0)]
    line = window.line()
    assert line["loss"] == 3.0 and line["loss_by_level"] == {"0-0.25": 1.0, "0.5-0.75": 3.0, "0.75-1": 5.0}
    assert (line["grad_norm"], line["skipped"], line["seconds_per_step"]) == (2.0, 1, 2.0)
    assert (line["density"], line["flops_saved"]) == (0.75, 0.1)
    assert Window.from_state(json.loads(json.dumps(window.state()))) == window


def test_a_window_without_a_finite_loss_says_none(tmp_path: Path) -> None:
    window = Window()
    window.add(Learned([(0.5, NAN)], norm=NAN, made=False, asked=0), 1.0)
    line = window.line()
    assert line["loss"] is None and line["grad_norm"] is None
    log.append(tmp_path, {"step": 1, **line, "other": NAN, "inner": {"a": float("inf")}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (read,) = (json.loads(text, parse_constant=refuse) for text in (tmp_path / log.NAME).read_text().splitlines())
    assert read["other"] is None and read["inner"] == {"a": None}
    assert dict(log.flat({"a": 1, "b": {"c": 2.0}, "d": None})) == {"a": 1, "b/c": 2.0}


def test_levels_at_the_ends() -> None:
    assert loss_by_level([(0.0, 1.0), (1.0, 2.0)]) == {"0-0.25": 1.0, "0.75-1": 2.0}
