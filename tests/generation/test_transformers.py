"""Classes and settings of a model's transformers, from a folder or the Hub, without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from twins import class_or_skip, ignores_warnings

from vidsparse import HeadModes, Radial, StepSchedule
from vidsparse.generation import config_files
from vidsparse.generation.config_files import read_config
from vidsparse.generation.frames import geometry
from vidsparse.generation.models import find_model
from vidsparse.generation.transformers import (
    attention_layers,
    check_pattern,
    configured_transformers,
    without_weights,
)
from vidsparse.runtime.registry import adapter_named
from vidsparse.shapes.shipped import FOLDER
from vidsparse_pipelines import ADAPTERS

pytestmark = ignores_warnings


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_family_is_built_at_full_size_without_memory(name: str) -> None:
    cls = class_or_skip(name)
    model, adapter = without_weights(cls, {}), adapter_named(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(adapter.self_attentions(model)) > 10


def test_a_pattern_is_checked_against_the_layers_and_heads_of_a_model() -> None:
    assert attention_layers("shapes") == 6 and attention_layers("WanTransformer3DModel") == 40
    check_pattern("shapes", StepSchedule(Radial(0.3), dense_layers=(5, -6)))
    check_pattern("shapes", HeadModes((((("full",) * 3),) * 6,)))
    with pytest.raises(ValueError, match=r"dense_layers \[6\]"):
        check_pattern("shapes", StepSchedule(Radial(0.3), dense_layers=(6,)))
    with pytest.raises(ValueError, match="the table is for 6 layers of 2 heads, the model has 6 layers of 3 heads"):
        check_pattern("shapes", HeadModes((((("full",) * 2),) * 6,)))


def test_settings_that_are_zero_or_false_are_kept() -> None:
    """A part that a checkpoint leaves out stays left out, although the twin has it."""
    cls = class_or_skip("HunyuanVideoTransformer3DModel")
    model = without_weights(cls, {"num_layers": 3, "num_single_layers": 0})
    assert len(adapter_named(cls.__name__).self_attentions(model)) == 3
    cls = class_or_skip("HunyuanVideoFramepackTransformer3DModel")
    assert not without_weights(cls, {"has_image_proj": False}).config.has_image_proj


def test_both_experts_are_read(tmp_path: Path) -> None:
    for name, layers in (("transformer", 4), ("transformer_2", 2)):
        (tmp_path / name).mkdir()
        settings = {"_class_name": "WanTransformer3DModel", "num_layers": layers}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    found = configured_transformers(str(tmp_path))
    assert {name: (cls, settings["num_layers"]) for name, (cls, settings) in found.items()} == {
        "transformer": (diffusers.WanTransformer3DModel, 4),
        "transformer_2": (diffusers.WanTransformer3DModel, 2),
    }
    with pytest.raises(ValueError, match=r"dense_layers \[3\]"):
        check_pattern(str(tmp_path), StepSchedule(Radial(0.3), dense_layers=(3,)))
    (tmp_path / "transformer" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"transformer/config\.json of .* is not JSON"):
        configured_transformers(str(tmp_path))


def of_hub(kind: type[Exception], text: str) -> Exception:
    """An error of the Hub; before huggingface_hub 1.0 its signature is another."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.server_message = None  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            of_hub(LocalEntryNotFoundError, "no network"),
            "cannot reach huggingface.co, and a.json of model 'owner",
        ),
        (
            of_hub(RepositoryNotFoundError, "404 Client Error.\nmore"),
            "cannot read model 'owner/name' .*404 Client",
        ),
        (of_hub(EntryNotFoundError, "no such file"), None),
    ],
    ids=["no-network", "no-repository", "no-file"],
)
def test_what_the_hub_answers(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str | None) -> None:
    config_files._from_hub.cache_clear()
    asked: list[Any] = []

    def download(*where: str) -> str:
        asked.append(where)
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    if says is None:
        assert read_config("owner/name", "a.json") is None
    else:
        with pytest.raises(OSError, match=says):
            read_config("owner/name", "a.json")
    assert asked == [("owner/name", "a.json")], "one question is enough"
    config_files._from_hub.cache_clear()


def test_a_cached_pipeline_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache cannot tell that a file is missing on the Hub, such as that of a second expert."""
    index = json.loads((FOLDER / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "transformer_2"}))
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        shutil.copy(FOLDER / part / "config.json", tmp_path / part)
    config_files._from_hub.cache_clear()
    monkeypatch.setattr(config_files, "_from_hub", cached := Cache(tmp_path))
    (cls, settings), *others = configured_transformers("owner/name").values()
    assert (cls, settings["num_layers"], others) == (diffusers.WanTransformer3DModel, 6, [])
    assert geometry("owner/name") == geometry(str(tmp_path))
    assert find_model("owner/name").pipeline_class is diffusers.WanPipeline
    check_pattern("owner/name", Radial(0.3))
    assert set(cached.asked) == {"model_index.json", "transformer/config.json", "vae/config.json"}


class Cache:
    """The files of a folder as those of a model of the Hub without a network."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()

    def __call__(self, model: str, file: str) -> str:
        self.asked.append(file)
        if not (self.folder / file).is_file():
            raise OSError(f"cannot reach huggingface.co, and {file} of model {model!r} is not in the local cache")
        return str(self.folder / file)
