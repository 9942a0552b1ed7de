"""What accelerate's settings may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shared_training import FSDP2
from tiny_training import PATTERN, assert_same, pipeline, train

from vidsparse.finetune import Settings, check_pipeline
from vidsparse.finetune.process.accelerator import (
    PLUGINS,
    SHARDED,
    check_launch,
    check_placed,
    shards_base,
    use_own_gpu,
)


@pytest.mark.parametrize("variable", PLUGINS)
def test_plugins_are_refused_by_name(
    variable: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_launch({variable: "no", "ACCELERATE_MIXED_PRECISION": "bf16"})
    monkeypatch.setenv(variable, "inductor" if "DYNAMO" in variable else "true")
    name = PLUGINS[variable].split(" ")[0]
    with pytest.raises(NotImplementedError, match=f"switch on {name}.*, which finetune does not serve"):
        train(tmp_path / "out", cache)
    assert not (tmp_path / "out").exists()


def test_accumulation_of_the_environment_changes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tmp_path / "plain", cache, batch=2, steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    said: list[str] = []
    assert_same(train(tmp_path / "other", cache, batch=2, steps=2, say=said.append), plain)
    assert said == ["accelerate's gradient accumulation of 3 is not used: --batch decides, here 2"]


@pytest.mark.parametrize("variable", SHARDED)
def test_fsdp_is_served_in_one_way_alone(variable: str) -> None:
    check_launch(FSDP2)
    assert shards_base(FSDP2) and not shards_base({**FSDP2, "ACCELERATE_USE_FSDP": "false"})
    other = {"FSDP_VERSION": "1"}.get(variable, "false" if FSDP2[variable] == "true" else "true")
    line = SHARDED[variable][1]
    with pytest.raises(NotImplementedError, match=f"^{variable}={other} is not served: .*; write `{line}` under fsdp_"):
        check_launch({**FSDP2, variable: other})
    check_launch({**FSDP2, variable: other, "ACCELERATE_USE_FSDP": "false"})


def test_accelerate_takes_version_1_where_none_is_said() -> None:
    with pytest.raises(NotImplementedError, match="FSDP_VERSION=1 is not served"):
        check_launch({"ACCELERATE_USE_FSDP": "true"})


def test_each_process_loads_onto_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes loads onto the current GPU, which is the first in every process until something sets it."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    use_own_gpu({"LOCAL_RANK": "3"})
    assert chosen == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    use_own_gpu({})
    use_own_gpu({"LOCAL_RANK": "3"})
    assert chosen == [3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # where each process sees its own GPU alone
    use_own_gpu({"LOCAL_RANK": "3"})
    assert chosen == [3, 0]


@pytest.mark.parametrize("place", [0, "cuda:0", torch.device("cuda", 0)], ids=str)
def test_quantised_weights_on_the_gpu_of_another_process(place: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, second = pipeline(), {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    pipe.transformer.is_loaded_in_4bit, pipe.transformer.hf_device_map = True, {"": place}
    for alone in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}):
        check_placed(pipe.transformer, alone)
    with monkeypatch.context() as gpus:
        gpus.setattr(torch.cuda, "device_count", lambda: 1)  # each process sees its own GPU alone
        check_placed(pipe.transformer, second)
        gpus.setattr(torch.cuda, "device_count", lambda: 2)
        todo = r"call torch.cuda.set_device\(int\(os.environ\['LOCAL_RANK'\]\) % torch.cuda.device_count\(\)\) before"
        with pytest.raises(ValueError, match=f"are on cuda:0 and it trains on cuda:1; {todo}"):
            check_placed(pipe.transformer, second)
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vidsparse.finetune.process.accelerator.own_gpu", lambda environment: 1)
    with pytest.raises(ValueError, match="are on cuda:0 and it trains on cuda:1"):
        check_pipeline(pipe, Settings(PATTERN))
    pipe.transformer.is_loaded_in_4bit = False
    check_pipeline(pipe, Settings(PATTERN))
