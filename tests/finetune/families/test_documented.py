"""The families in the page about training are those of the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidsparse.finetune.families import TASKS, task_for

PAGE = Path(__file__).parents[3] / "docs/training.md"


def test_the_page_has_every_family_and_its_pipelines() -> None:
    table = PAGE.read_text(encoding="utf-8").split("<!-- trained -->")[1].split("<!-- /trained -->")[0]
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in table.strip().splitlines()[2:]}
    assert set(rows) == {task.family for task in TASKS}
    for family, columns in rows.items():
        for from_image, cell in enumerate(columns):
            own = [
                name for t in TASKS if t.family == family and t.from_image == bool(from_image) for name in t.pipelines
            ]
            assert cell.strip() == (", ".join(f"`{name}`" for name in own) or "-")


def test_other_pipelines_are_refused_with_those_that_are_trained() -> None:
    from diffusers import LTX2ConditionPipeline, WanVACEPipeline

    for cls in (LTX2ConditionPipeline, WanVACEPipeline):
        with pytest.raises(
            NotImplementedError, match=rf"{cls.__name__} cannot be trained; finetune trains WanPipeline, "
        ):
            task_for(cls)
    with pytest.raises(NotImplementedError, match="it is distilled"):
        from diffusers import HunyuanVideo15Pipeline

        task_for(HunyuanVideo15Pipeline, config={"use_meanflow": True})
