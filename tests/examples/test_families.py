"""The program of each family runs, on a small twin of its model, and says what is true of the model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import diffusers
import pytest
from loaded import load_twins
from pages import ROOT
from small_videos import leaves_pipes
from twins import ignores_warnings

from vidsparse.estimation.estimate import model_preset
from vidsparse.estimation.published import MODELS
from vidsparse.generation.frames import families
from vidsparse.generation.transformers import class_named, defaults
from vidsparse.runtime.registry import adapter_of

pytestmark = [ignores_warnings, leaves_pipes]
EXAMPLES = sorted((ROOT / "examples/families").glob("*.py"))
NOT_RUN = "consisid"  # needs OpenCV, insightface and facexlib
every = pytest.mark.parametrize("program", EXAMPLES, ids=lambda program: program.stem)


def test_every_family_has_a_program() -> None:
    assert [program.stem for program in EXAMPLES] == sorted(families())


@pytest.mark.parametrize("program", [p for p in EXAMPLES if p.stem != NOT_RUN], ids=lambda program: program.stem)
def test_it_runs_and_writes_a_video(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_twins(monkeypatch, families()[program.stem])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(program))
    assert "attention calls sparse" in capsys.readouterr().out
    assert (tmp_path / "fox.mp4").stat().st_size > 0


@every
def test_it_says_what_is_true_of_the_model(program: Path) -> None:
    text = program.read_text()
    (known,) = (
        known
        for known in MODELS
        for model in known.models
        if f'"{model}"' in text and f"estimate {known.name}`" in text
    )
    assert known.transformer == families()[program.stem]
    assert f'the preset "{model_preset(known).name}"' in text
    cls = class_named(known.transformer)
    assert f"fps={adapter_of(cls).fps({**defaults(cls), **known.config})}" in text
    assert f"python examples/families/{program.name}\n" in text and len(text.splitlines()) <= 40


def test_the_code_of_consisid_uses_what_there_is() -> None:
    """Read, because diffusers has stand-ins for its classes where OpenCV is missing."""
    code = (ROOT / f"examples/families/{NOT_RUN}.py").read_text()
    folder = Path(diffusers.__file__).parent / "pipelines/consisid"
    for name in ("prepare_face_models", "process_face_embeddings_infer"):
        assert name in code and f"def {name}(" in (folder / "consisid_utils.py").read_text()
    call = (folder / "pipeline_consisid.py").read_text().partition("def __call__(")[2].partition(") ->")[0]
    asked = re.findall(r"(\w+)=", code.partition("= pipe(")[2].partition(")")[0])
    assert len(asked) == 3 and [name for name in asked if f" {name}:" not in call] == []
