"""The loss as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.image import imread

from vidsparse.finetune.record import log
from vidsparse.finetune.record.curve import draw_curve


def test_the_picture_shows_what_the_log_has(tmp_path: Path) -> None:
    assert draw_curve(tmp_path) is None and not list(tmp_path.iterdir())
    for step in range(1, 30):
        log.append(tmp_path, {"step": step, "loss": 1 / step if step != 7 else None})
    path = draw_curve(tmp_path)
    assert path == tmp_path / "loss.png"
    plain = imread(path)
    log.append(tmp_path, {"step": 30, "validation_loss": 0.4})
    with (tmp_path / log.NAME).open("a") as file:
        file.write('{"step": 31, "lo')  # of a process that was killed
    draw_curve(tmp_path)
    assert imread(path).shape == plain.shape and (imread(path) != plain).any()
