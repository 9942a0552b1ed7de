"""`--temporal-bias` on the command line: the pattern that it builds, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse import Dense, Radial, StepBudget, StepSchedule, TemporalBias
from vidsparse.cli.request import Request
from vidsparse.generation.dense_steps import has_sparse_step
from vidsparse.serialize import to_data

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)

SPARSE = dict(pattern="radial", density=0.3, dense_steps=2)
SCHEDULE = StepSchedule(Radial(density=0.3), dense_steps=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SPARSE | dict(temporal_bias="1.5"), TemporalBias(SCHEDULE, 1.5)),
        (SPARSE | dict(temporal_bias="2,8"), TemporalBias(SCHEDULE, 2.0, 8.0)),
        (dict(pattern="dense", temporal_bias="2"), TemporalBias(Dense(), 2.0)),
        (dict(budget=0.6, temporal_bias="2"), TemporalBias(StepBudget(Radial(density=0.3), 0.6), 2.0)),
        (SPARSE, SCHEDULE),
    ],
    ids=["strength", "width", "dense", "budget", "none"],
)
def test_the_option_wraps_the_whole_pattern(options: dict[str, Any], expected: Any) -> None:
    request = Request(PROMPT, **options)
    assert request.build_pattern() == expected


def test_a_bias_in_a_file_is_refused(vidsparse: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("patterns") / "biased.json"
    file.write_text(json.dumps(to_data(TemporalBias(Radial(density=0.3)))))
    refused(vidsparse("generate", PROMPT, "--pattern", file), "expected a pattern without its schedule and its bias")


def test_all_steps_dense_are_noted_under_a_bias_too() -> None:
    dense, sparse = (TemporalBias(StepSchedule(Radial(density=0.3), dense_steps=count)) for count in (4, 3))
    assert not has_sparse_step(dense, 4) and has_sparse_step(sparse, 4)


def test_the_report_says_which_calls_had_it(vidsparse: Any, small: list[str]) -> None:
    asked = [*small, "--steps", 4, "--flow-shift", 1, "--temporal-bias", "2,1.5", "--report", "a.json", "-o", "a.mp4"]
    done = vidsparse("generate", PROMPT, *asked)
    assert done.code == 0, done.err
    report = json.loads(Path("a.json").read_text())["attention"]
    steps = {call["step"] for call in report["calls"] if call["biased"]}
    assert report["pattern"].startswith("TemporalBias(") and 0 in steps and 3 not in steps
    calls = report["biased_calls"]
    assert calls == 4 * len(steps), "two layers, with and without the prompt"
    assert f"temporal bias    in {calls} attention calls" in done.out


def test_a_dry_run_counts_dense_steps_that_have_the_bias_as_maps_of_all_tiles(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("generate", PROMPT, *small, "--temporal-bias", "2", "--dry-run")
    assert done.code == 0 and "TemporalBias(pattern=" in done.out, done.err
