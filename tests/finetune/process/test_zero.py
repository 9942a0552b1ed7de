"""What of accelerate's settings for DeepSpeed a training serves, and what it refuses by name; without DeepSpeed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PATTERN, train

from vidsparse.finetune import Settings, check_device, check_launch
from vidsparse.finetune.process import zero as module
from vidsparse.finetune.process.accelerator import shards_base
from vidsparse.finetune.process.zero import DEEPSPEED, FILE, REASONS, VARIABLES, Zero, check_zero, zero_of

ON = {DEEPSPEED: "true"}
AUTO = "auto"
SERVED: dict[str, Any] = {
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "gradient_accumulation_steps": AUTO,
    "gradient_clipping": AUTO,
    "bf16": {"enabled": AUTO},
    "fp16": {"enabled": False},
    "steps_per_print": 7,
    "zero_optimization": {
        "stage": 1,
        "reduce_bucket_size": 2e6,
        "overlap_comm": True,
        "offload_optimizer": {"device": "none"},
    },
}


def with_file(path: Path, **changes: Any) -> dict[str, str]:
    path.write_text(json.dumps({**SERVED, **changes}))
    return {**ON, FILE: str(path)}


def test_stages_are_read_as_accelerate_reads_them() -> None:
    assert zero_of({}) is None and zero_of({DEEPSPEED: "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}) is None
    assert zero_of(ON) == Zero(2)
    for stage in (1, 2, 3):
        environment = {**ON, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        assert zero_of(environment) == Zero(stage) and shards_base(environment) == (stage == 3)
        check_launch(environment)
    assert Zero(1).divides == "optimizer states" and Zero(2).divides == "gradients and optimizer states"


@pytest.mark.parametrize(("stage", "instead"), [("0", "plain MULTI_GPU"), ("7", "choose 2, or 3")])
def test_other_stages_are_refused(stage: str, instead: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=f"ZeRO stage {stage} is not served: .*{instead}"):
        check_launch({**ON, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage})
    with pytest.raises(NotImplementedError, match=f"ZeRO stage {stage} is not served: .*{instead}"):
        zero_of(with_file(tmp_path / "file", zero_optimization={"stage": int(stage)}))


@pytest.mark.parametrize("variable", VARIABLES)
def test_settings_that_nothing_serves_are_refused(variable: str) -> None:
    assert zero_of({**ON, variable: "none"}) == Zero()
    check_launch({variable: "true"})
    with pytest.raises(
        NotImplementedError, match=rf"^{variable}=true is not served: .+ in accelerate's deepspeed_conf"
    ):
        check_launch({**ON, variable: "true"})


def test_keys_of_a_file_reach_deepspeed(tmp_path: Path) -> None:
    environment = with_file(tmp_path / "file.json")
    text = Path(environment[FILE]).read_bytes()
    found = zero_of(environment)
    for other in (text.decode(), base64.urlsafe_b64encode(text).decode()):
        assert zero_of({**ON, FILE: other}) == found
    assert found is not None and found.stage == 1
    assert found.config(3, 0.5, 100) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
        "steps_per_print": 7,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 2e6, "overlap_comm": True},
    }
    for stage in (2, 3):
        assert Zero(stage).config(1, 1.0, 100)["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 100}
    left_open = with_file(tmp_path / "auto", zero_optimization={"stage": AUTO, "reduce_bucket_size": AUTO})
    assert zero_of({**left_open, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}) == Zero(1, {"steps_per_print": 7})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5 .*: --clip decides; write"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4 .*: --batch decides"),
        ({"bf16": {"enabled": True}}, "bf16.enabled=True .*: the LoRA learns in float32"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer.type='AdamW' .*: --optimizer and --lr decide"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type='WarmupLR' .*: --lr-scheduler decides"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "offload_param.device='cpu' .*--offload-base"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size=2 .* is not served; leave it out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_keys_of_a_file_that_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=said):
        check_launch(with_file(tmp_path / "file.json", **changes))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", ValueError, "is no JSON"),
        (base64.urlsafe_b64encode(b"[1]").decode(), ValueError, "must be a table"),
        ("no/such.json", FileNotFoundError, "no/such.json' does not exist; name a JSON file"),
    ],
    ids=["broken", "list", "missing"],
)
def test_files_that_cannot_be_read(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        zero_of({**ON, FILE: text})


@pytest.mark.parametrize("name", REASONS)
def test_optimizers_that_need_whole_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsparse.finetune.settings.check_optimizer", lambda name: None)
    settings = Settings(PATTERN, optimizer=name)
    with pytest.raises(NotImplementedError, match=rf"optimizer='{name}' cannot be combined with DeepSpeed: .*'adamw'"):
        check_zero(settings)
    with pytest.raises(NotImplementedError, match=r"precision='fp16' scales losses.*take 'bf16'"):
        check_zero(Settings(PATTERN, precision="fp16"))
    check_zero(Settings(PATTERN))


def test_a_missing_package_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    settings = Settings(PATTERN)
    monkeypatch.setenv(DEEPSPEED, "true")
    check_device(settings, cpu=True)  # one process has nothing to divide
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_device(settings, cpu=True, planned=True)
    with pytest.raises(ImportError, match=r"which is not installed: pip install 'deepspeed>=0\.19\.8'"):
        check_device(settings, cpu=True)
    monkeypatch.setenv(DEEPSPEED, "false")
    check_device(settings, cpu=True)


def test_an_old_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "version", lambda name: "0.19.7")
    with pytest.raises(ImportError, match=r"DeepSpeed 0\.19\.7 makes steps .*; pip install 'deepspeed>=0\.19\.8'"):
        check_zero(Settings(PATTERN), torch.device("cpu"))


def test_deepspeed_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    check_zero(Settings(PATTERN), torch.device("cpu"))
    with pytest.raises(ValueError, match="DeepSpeed computes on cpu and the training on cuda; set DS_ACCELERATOR=cuda"):
        check_zero(Settings(PATTERN), torch.device("cuda"))


def test_it_is_refused_before_anything_is_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEEPSPEED, "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    with pytest.raises(NotImplementedError, match="ZeRO stage 0 is not served"):
        train(tmp_path / "out", cache)
    assert not (tmp_path / "out").exists()


def test_one_process_trains_as_ever_and_says_what_is_not_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tmp_path / "plain", cache, steps=2)
    monkeypatch.setenv(DEEPSPEED, "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.25")
    said: list[str] = []
    found = train(tmp_path / "other", cache, steps=2, say=said.append)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert said == ["accelerate's gradient clipping of 0.25 is not used: --clip decides, here 1.0"]
