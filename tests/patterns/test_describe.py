"""What `vidsparse patterns NAME` reads from a class: complete for every pattern and correction, and true."""

from __future__ import annotations

from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from vidsparse import HeadModes, Pattern, PooledComplement, Radial, Reuse, StepSchedule, TopBlocks
from vidsparse.patterns.describe import class_of, fields_of, idea_of, papers_of
from vidsparse.patterns.names import pattern_classes, words_of

EXAMPLE = Path(__file__).parents[2] / "examples/custom_pattern.py"


@pytest.mark.parametrize("name", words_of())
def test_every_field_has_its_meaning(name: str) -> None:
    cls = class_of(name)
    found = fields_of(cls)
    assert [field.name for field in found] == [f.name for f in fields(cls)]
    assert [field.name for field in found if not field.meaning] == []
    assert idea_of(cls).endswith(".")
    for field in found:
        assert "VALUE" not in field.legal and "\n" not in field.meaning + field.legal


def test_what_is_said_of_fields() -> None:
    density, decay, sink, _ = fields_of(Radial)
    assert density == (
        *(
            "density",
            "float | None",
            "0.3",
            "the fraction of tile pairs to keep; the closest decay is found once for each grid.",
        ),
        "in (0, 1]: the fraction to keep, or None",
    )
    assert (decay.default, decay.legal) == ("None", "a finite number greater than 0, or None")
    assert (sink.default, sink.legal) == ("True", "True or False")
    legal = {f.name: f.legal for cls in (TopBlocks, Reuse, PooledComplement) for f in fields_of(cls)}
    assert legal["top_k"] == "a whole number of at least 1, or None" and "TopBlocks" in legal["pattern"]
    assert legal["min_recall"] and legal["gate"] == "True or False"
    last = {f.name: f for f in fields_of(StepSchedule)}["dense_last_steps"]
    assert last.meaning.startswith("how many steps are dense at the start and at the end") and last.default == "0"
    assert fields_of(HeadModes)[0].default == "'FILE.json'"


def test_most_fields_say_what_they_accept() -> None:
    found = [field for name in pattern_classes() for field in fields_of(class_of(name))]
    assert sum(bool(field.legal) for field in found) > 0.8 * len(found)


def test_what_is_legal_is_accepted() -> None:
    values: dict[str, Any] = {"True or False": True, "a whole number of at least 1, or None": 1}
    for name in ("radial", "top-blocks", "gridded", "mixture-of-blocks"):
        pattern = pattern_classes()[name]
        for field in fields_of(pattern):
            if field.legal in values and field.name not in pattern.named_alternatives:
                built = pattern(**pattern.named_defaults)
                assert getattr(replace(built, **{field.name: values[field.legal]}), field.name) == values[field.legal]


def test_papers_and_a_class_of_ones_own() -> None:
    assert papers_of(TopBlocks) == ["2502.20766", "2503.16428", "2303.08810"] and papers_of(Reuse)[:1]
    cls = class_of(f"{EXAMPLE}:SpaceThenTime")
    assert idea_of(cls).startswith("Two layers") and papers_of(cls) == []
    assert fields_of(cls)[0].meaning.startswith("sides of the tiles in tokens; one frame long")


def test_a_class_without_a_docstring_has_no_idea() -> None:
    plain = make_dataclass("Plain", ["window"], bases=(Pattern,), frozen=True)
    plain.__module__ = __name__
    assert idea_of(plain) == "" and fields_of(plain)[0].meaning == ""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("topblocks", "'topblocks' is neither a pattern nor a correction; did you mean top-blocks"),
        ("Reshape", r"did you mean reshaped\?"),
        ("xyz", "choose one of dense, exact-blocks"),
        ("absent.py:Mine", "there is no file"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        class_of(name)
