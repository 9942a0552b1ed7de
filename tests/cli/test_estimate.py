"""`vidsparse estimate`: the table, the list of models, JSON, notes and refusals."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from command_line import refused, vidsparse_in_a_folder
from twins import ignores_warnings

from vidsparse.cli.estimate import GPU_HELP, estimate
from vidsparse.estimation.estimate import UTILIZATION
from vidsparse.estimation.gpus import GPUS
from vidsparse.estimation.published import MODELS

pytestmark = ignores_warnings
vidsparse = pytest.fixture(vidsparse_in_a_folder)
SMALL = "--frames", 17, "--size", "832x480", "--steps", 10


def test_what_a_model_gains(vidsparse: Any) -> None:
    done = vidsparse("estimate", "wan2.1-14b", *SMALL, "--gpu", "h100")
    for text in ("5x30x52 = 7,800 tokens", "Radial 0.4", "seconds", "no GPU has confirmed", "50% of 989 TFLOP/s"):
        assert text in " ".join(done.out.split()), done.out
    assert "vidsparse bench" in done.out and "note:" not in done.err


def test_a_gpu_is_left_out_unless_asked_for(vidsparse: Any) -> None:
    done = vidsparse("estimate", "wan2.1-14b", *SMALL)
    assert "seconds" not in done.out and "TFLOP/s" not in done.out


def test_a_size_that_does_not_fit_is_noted(vidsparse: Any) -> None:
    done = vidsparse("estimate", "wan2.1-14b", "--frames", 16, "--size", "840x480", "--steps", 4, "--gpu", "4090")
    assert "16 frames do not fit the VAE" in done.err and "using 832x480" in done.err
    assert "the weights do not fit the 24 GB of one RTX 4090" in done.err


def test_a_pattern_of_choice_is_compared_with_dense(vidsparse: Any) -> None:
    done = vidsparse("estimate", "wan2.1-14b", *SMALL, "--density", 0.3, "--dense-steps", 1, "--json")
    dense, sparse = json.loads(done.out)["settings"]
    assert (dense["name"], sparse["name"], sparse["sparse_steps"]) == ("dense", "radial", 9)
    assert "density=0.3" in sparse["pattern"] and sparse["denoising_bound"] > 1
    named = vidsparse("estimate", "wan2.1-14b", *SMALL, "--preset", "default", "--json")
    assert [one["name"] for one in json.loads(named.out)["settings"]] == ["dense", "default"]


def test_the_help_is_true() -> None:
    assert [gpu.name for gpu in GPUS if gpu.name not in GPU_HELP] == []
    defaults = {name: parameter.default for name, parameter in inspect.signature(estimate).parameters.items()}
    assert defaults["utilization"] == UTILIZATION


def test_without_a_model_the_models_are_listed(vidsparse: Any) -> None:
    listed = vidsparse("estimate").out
    assert [known.name for known in MODELS if f"{known.name} " not in listed] == []
    names = [known["name"] for known in json.loads(vidsparse("estimate", "--json").out)]
    assert names == [known.name for known in MODELS]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["wan2.1"], "did you mean"),
        (["wan2.1-14b", "--gpu", "TPU"], "GPU 'TPU' is unknown"),
        (["wan2.1-14b", "--size", "832"], "must be WIDTHxHEIGHT"),
        (["wan2.1-14b", "--preset", "default", "--density", "0.3"], "leave out --density"),
        (["wan2.1-14b", "--preset", "none"], "preset 'none' is unknown"),
        (["wan2.1-14b", "--pattern", "none"], "pattern 'none' is unknown"),
    ],
    ids=" ".join,
)
def test_what_is_not_possible_is_refused(vidsparse: Any, words: list[str], expected: str) -> None:
    refused(vidsparse("estimate", *words), expected)
