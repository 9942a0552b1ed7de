"""What is there to copy makes what was made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from needs import needs_weights

import vidsparse
from vidsparse.cli.ui import read
from vidsparse.patterns.names import build_pattern, correction_classes
from vidsparse.presets import PRESETS
from vidsparse.ui.form import PATTERNS, Form
from vidsparse.ui.source import command_line, expression, python

PROMPT = "a red circle moving left on a blue background"
SMALL = dict(frames="5", height="32", width="32", steps="4", dense_steps="1")


@pytest.mark.parametrize(
    "value",
    [
        *(known.pattern for known in PRESETS),
        *(build_pattern(name) for name in PATTERNS),
        *(cls() for cls in correction_classes().values()),
        None,
    ],
    ids=str,
)
def test_an_expression_makes_an_equal_value(value: Any) -> None:
    assert eval(expression(value), {"vidsparse": vidsparse}) == value


def test_an_expression_leaves_out_defaults() -> None:
    inner = vidsparse.StepSchedule(vidsparse.Radial(density=0.3), dense_layers=(0,))
    assert expression(inner) == "vidsparse.StepSchedule(pattern=vidsparse.Radial(density=0.3), dense_layers=(0,))"


def test_a_command_line_is_read_as_it_was_made() -> None:
    words = Form("it's a fox; rm -r", model="a/b", steps="4").words()
    program, command, *others = shlex.split(command_line("compare", words))
    assert (program, command, others) == ("vidsparse", "compare", words)


@needs_weights
def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read(Form(PROMPT, **SMALL).words(("--device", "cpu")))
    pattern, correction, arguments = request.checked()
    names: dict[str, Any] = {}
    exec(python(request, pattern, correction, arguments), names)
    assert len(names["video"]) == 5 and Path("video.mp4").stat().st_size
    assert names["pattern"] == pattern and names["run"].report().sparse_calls


def test_the_program_of_another_model() -> None:
    request = read(Form("a fox", model="a/b").words(("--device", "cuda", "--dtype", "fp16", "--offload")))
    object.__setattr__(request, "device", "cpu")  # there is no GPU
    request.__dict__["known"] = read([PROMPT]).known
    request.__dict__["plan"] = read([PROMPT]).plan
    text = python(request, vidsparse.VideoSparse(), vidsparse.GatedCoarse(), {"prompt": "it's"})
    assert "DiffusionPipeline.from_pretrained('a/b', torch_dtype=torch.float16)" in text
    assert "vidsparse.load_gates(pipe.transformer, 'a/b')\npipe.enable_model_cpu_offload(device='cpu')" in text
    assert 'prompt="it\'s",' in text
    compile(text, "program", "exec")
