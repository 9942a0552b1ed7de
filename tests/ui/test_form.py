"""What is typed and chosen becomes the words of a command line, and these become the request that was meant."""

from __future__ import annotations

import pytest

from vidsparse import FreeSwim, InwardWindow, Radial
from vidsparse.cli.ui import read
from vidsparse.patterns.names import pattern_classes, takes_density
from vidsparse.presets import PRESETS
from vidsparse.ui.form import ATTENTION, CORRECTIONS, PATTERNS, PRESET, Form, has_density

PROMPT = "a red circle moving left on a blue background"


def test_an_untouched_form_is_the_prompt_alone() -> None:
    assert Form(PROMPT, seed="0").words() == [PROMPT]


def test_every_field_becomes_an_option() -> None:
    form = Form(
        PROMPT,
        model="a/b",
        attention="top-blocks",
        density="0.2",
        correction="rectified",
        dense_steps="3",
        frames="9",
        height="32",
        width="48",
        steps="4",
        guidance="1.5",
        seed="7",
    )
    asked = read(form.words(("--device", "cpu", "--offload")))
    assert (asked.prompt, asked.model, asked.pattern, asked.density) == (PROMPT, "a/b", "top-blocks", 0.2)
    assert (asked.correction, asked.dense_steps, asked.steps, asked.guidance) == ("rectified", 3, 4, 1.5)
    assert (asked.frames, asked.height, asked.width, asked.seed) == (9, 32, 48, 7)
    assert (asked.device, asked.offload) == ("cpu", True)


def test_a_density_changes_the_recommended_preset() -> None:
    asked = read(Form(PROMPT, density="0.2").words())
    assert asked.preset == "shapes" and asked.chosen is not None and asked.chosen.name == "shapes"
    assert read(Form(PROMPT).words()).preset is None


def test_a_preset_is_chosen_by_name() -> None:
    assert read(Form(PROMPT, attention="preset mochi").words()).preset == "mochi"


@pytest.mark.parametrize("prompt", ["--seed 3", "-", "a 'quoted' \"fox\"", ""])
def test_a_prompt_is_never_an_option(prompt: str) -> None:
    asked = read(Form(prompt, steps="4").words(("--device", "cpu")))
    assert (asked.prompt, asked.seed, asked.steps, asked.device) == (prompt, 0, 4, "cpu")


def test_a_negative_number_is_a_value() -> None:
    assert read(Form(PROMPT, guidance="-1.5").words()).guidance == -1.5


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("frames", "0", "--frames"),
        ("frames", "many", "--frames"),
        ("steps", "2.5", "--steps"),
        ("seed", "-1", "--seed"),
        ("density", "a half", "--density"),
    ],
)
def test_what_the_command_line_refuses_is_refused(field: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(Form(PROMPT, **{field: value}).words())


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_density_is_taken_where_it_is_offered(attention: str) -> None:
    request = read(Form(PROMPT, attention=attention, density="0.5").words())
    if has_density(attention, "shapes"):
        request.build_pattern()
    else:
        with pytest.raises(ValueError, match="no density"):
            request.build_pattern()


def test_the_choices_are_complete() -> None:
    assert {*PATTERNS, *(PRESET + known.name for known in PRESETS)} < {*ATTENTION}
    assert {*pattern_classes()} - {*PATTERNS} == {"head-modes", "learned-gate"}, "which need files"
    assert {"none", "pooled-complement"} < {*CORRECTIONS}


def test_which_patterns_take_a_density() -> None:
    classes = pattern_classes()
    assert takes_density(classes["radial"]) and takes_density(classes["reuse"]), "reuse holds a pattern"
    assert not takes_density(classes["dense"])
    assert not takes_density(classes["free-swim"]), "its windows have none by default"
    assert takes_density(FreeSwim(Radial(density=0.3))) and not takes_density(FreeSwim(InwardWindow(scale=2.0)))
