"""What accelerate's settings may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared_training import FSDP2
from tiny_training import assert_same, train

from vidsparse.finetune.process.accelerator import PLUGINS, SHARDED, check_launch, shards_base


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
