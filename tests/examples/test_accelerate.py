"""The settings of `examples/accelerate/`, as `accelerate launch --config_file` reads them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from gloo import free_port
from pages import ROOT
from safetensors.torch import load_file
from tiny_training import lines, train

from vidsparse.finetune import check_launch
from vidsparse.finetune.process.accelerator import shards_base
from vidsparse.finetune.process.zero import Zero, zero_of

FILES = sorted((ROOT / "examples/accelerate").glob("*.yaml"))
WORKER = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    from vidsparse.finetune import train as module
    from tiny_training import train

    def told(*arguments, shard=module.shard):
        shard(*arguments)
        print("divided", flush=True)

    module.shard = told
    train(Path(sys.argv[2]), Path(sys.argv[3]), steps=3, save_every=1)
    """
)


def test_there_are_settings() -> None:
    assert [file.stem for file in FILES] == ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_training_serves_what_is_launched(file: Path) -> None:
    asked = launch_command_parser().parse_args(["--config_file", str(file), "program.py"])
    asked, _, _ = _validate_launch_command(asked)
    asked.deepspeed_fields_from_accelerate_config = ""  # as the launcher fills it in without a file of DeepSpeed's own
    environment = prepare_deepspeed_cmd_env(asked)[1] if asked.use_deepspeed else prepare_multi_gpu_env(asked)
    check_launch(environment)
    assert shards_base(environment) == (file.stem in ("fsdp2", "deepspeed_zero3"))
    assert zero_of(environment) == {"deepspeed_zero2": Zero(2), "deepspeed_zero3": Zero(3)}.get(file.stem)
    assert asked.num_processes == 8 and (asked.use_fsdp or asked.multi_gpu or asked.use_deepspeed)


def test_two_processes_with_fsdp2_compute_what_one_does_with_twice_the_batch(tmp_path: Path, cache: Path) -> None:
    settings = (ROOT / "examples/accelerate/fsdp2.yaml").read_text()
    (tmp_path / "two.yaml").write_text(settings.replace("num_processes: 8", "num_processes: 2"))
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "two.yaml")]
    launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    arguments = [str(tmp_path / "worker.py"), str(ROOT / "tests/support"), str(tmp_path / "out"), str(cache)]
    done = subprocess.run([*launcher, *arguments], env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("divided") == 2
    one = train(tmp_path / "one", cache, batch=2, steps=3)
    two = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    losses = [[line["loss"] for line in lines(tmp_path / folder)] for folder in ("out", "one")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
