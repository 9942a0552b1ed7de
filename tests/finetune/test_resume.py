"""A LoRA training that is stopped, killed or divided over processes is the training that it would have been."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import assert_same, lines, pipeline, train

from vidsparse import HeadModes, LoraRecipe, ProxyTokens
from vidsparse.finetune.identity import check_same
from vidsparse.lora.proxies import proxies_of
from vidsparse.lora.stored import read_names

SUPPORT = Path(__file__).parents[1] / "support"

WORKER = textwrap.dedent(
    """
    import gc, sys
    from pathlib import Path

    import torch
    from torch.nn.parallel import DistributedDataParallel

    sys.path.insert(0, sys.argv[1])
    import tiny_training as t
    from vidsparse.finetune import Settings, drawn_clips, finetune

    def destroy_without_ddp(group=None, destroy=torch.distributed.destroy_process_group):
        # One that outlives its process group may hang for ever, or may not.
        assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
        destroy(group)

    torch.distributed.destroy_process_group = destroy_without_ddp
    folder, cache, batch = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    settings = Settings(**{"pattern": t.PATTERN, **t.SMALL, "batch": batch, "steps": int(sys.argv[5]), "save_every": 1})
    finetune(t.pipeline(), drawn_clips(4, t.BUCKET), settings, folder, base="tiny", cache=cache, cpu=True)
    """
)


def start(
    launcher: list[str], tmp_path: Path, cache: Path, batch: int, steps: int, first: str = ""
) -> subprocess.Popen[str]:
    """Train in a process of its own, after the code `first`."""
    worker = tmp_path / "worker.py"
    worker.write_text(textwrap.dedent(first) + WORKER)
    arguments = [str(SUPPORT), str(tmp_path / "out"), str(cache), str(batch), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    return subprocess.Popen([*launcher, str(worker), *arguments], env=environment, text=True, stderr=subprocess.PIPE)


def has_loopback() -> bool:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            socket.create_connection(listener.getsockname(), timeout=5).close()
        except OSError:
            return False
    return True


# Layer 0 runs dense, and some steps: their proxies get no gradient, for which DDP waits.
PROXIES = ProxyTokens((1, 1, 2), learned=True)
WITH_PROXIES = f"import tiny_training, vidsparse; tiny_training.SMALL['correction'] = vidsparse.{PROXIES!r}\n"


@pytest.mark.skipif(not has_loopback(), reason="processes cannot talk to each other: 127.0.0.1 cannot be reached")
@pytest.mark.parametrize("correction", [None, PROXIES], ids=["alone", "proxies"])
def test_two_processes_compute_what_one_does_with_twice_the_batch(
    tmp_path: Path, cache: Path, correction: ProxyTokens | None
) -> None:
    # accelerate's own launcher starts one process on a CPU; what it sets for several is what torchrun sets.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # By number, not by name: a machine without a network may not be able to look up its own.
    first, steps = ("", 3) if correction is None else (WITH_PROXIES, 8)
    process = start([*torchrun, "--local-addr=127.0.0.1"], tmp_path, cache, batch=1, steps=steps, first=first)
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    one = train(tmp_path / "one", cache, batch=2, steps=steps, correction=correction)
    two = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    if correction is not None:
        headers = (read_names(tmp_path / folder / "pytorch_lora_weights.safetensors")[1] for folder in ("out", "one"))
        two, one = (proxies_of(tmp_path, header, LoraRecipe(correction=correction)) for header in headers)
        assert len(one) == 6 and max(float(weight.abs().max()) for weight in one.values()) > 0.05
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
    losses = [[line["loss"] for line in lines(tmp_path / folder)] for folder in ("out", "one")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_what_no_longer_decides_the_result_may_differ(tmp_path: Path) -> None:
    """An earlier version compared whether blocks are computed again."""
    said: list[str] = []
    now = {"order": "anew", "rank": "4"}
    check_same({**now, "gradient_checkpointing": "True"}, now, tmp_path, said.append)
    with pytest.raises(ValueError, match="rank was 2, is 4"):
        check_same({**now, "rank": "2"}, now, tmp_path, said.append)
    assert not said


def test_killed_while_it_saves_a_checkpoint(tmp_path: Path, cache: Path) -> None:
    killed = """
    import os, signal, torch

    def half(state, file, save=torch.save):
        save(state, file)
        if state["step"] == 3:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    """
    process = start([sys.executable], tmp_path, cache, batch=1, steps=5, first=killed)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    names = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    assert len(names) == 3 and names[0].startswith(".step-0000003") and names[1:] == ["step-0000001", "step-0000002"]
    settings = dict(batch=1, steps=5, save_every=1)
    said: list[str] = []
    assert_same(
        train(tmp_path / "out", cache, say=said.append, **settings), train(tmp_path / "whole", cache, **settings)
    )
    assert said == ["resuming from step 2"]


def test_a_full_disk_keeps_the_checkpoints(tmp_path: Path, cache: Path, full_disk: Any) -> None:
    train(tmp_path, cache, steps=2)
    written = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    with (
        full_disk(),
        pytest.raises(OSError, match=r"cannot write checkpoint .*step-0000004: .*; the earlier ones are"),
    ):
        train(tmp_path, cache, steps=4, log_every=9)
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == written
    assert_same(train(tmp_path, cache), train(tmp_path / "whole", cache))


def test_a_killed_training_goes_on(tmp_path: Path, cache: Path) -> None:
    process = start([sys.executable], tmp_path, cache, batch=1, steps=100_000)
    checkpoints = tmp_path / "out/checkpoints"
    try:
        while process.poll() is None and not list(checkpoints.glob("step-*")):
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    (checkpoints / ".step-0999999-0a").mkdir()
    reached = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    settings = dict(batch=1, steps=reached + 3, save_every=1)
    assert_same(train(tmp_path / "out", cache, **settings), train(tmp_path / "whole", cache, **settings))
    assert not list(checkpoints.glob(".step-*"))


def test_the_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path, cache: Path) -> None:
    train(tmp_path, cache, steps=2)
    newest = tmp_path / "checkpoints/step-0000002"
    state = torch.load(newest / "state.pt", weights_only=True)
    added = ("order", "dora", "optimizer", "loss_weighting", "lr_scheduler", "exclude", "timestep_sampling")
    state["identity"] = {name: value for name, value in state["identity"].items() if name not in added}
    for group in state["optimizer"]["param_groups"]:
        del group["factor"]
    del state["window"], state["skipped"]
    shutil.rmtree(newest)
    torch.save(state | {"losses": [1.0]}, tmp_path / "checkpoints/step-0000002.pt")
    with pytest.raises(ValueError, match=r"of another training \(optimizer was 'adamw', is 'muon'\)"):
        train(tmp_path, cache, optimizer="muon")
    said: list[str] = []
    train(tmp_path, cache, say=said.append)
    assert said[0].endswith("an earlier version, which drew videos in another order; now each video once in an epoch")
    assert said[1:] == ["resuming from step 2"]


def test_checkpoints_of_another_training_are_refused(tmp_path: Path, cache: Path) -> None:
    train(tmp_path, cache)
    written = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"of another training \(rank was 4, is 8\); resume with its settings"):
        train(tmp_path, cache, pipe := pipeline(), rank=8)
    assert not hasattr(pipe.transformer, "peft_config") and "Sparse" not in str(pipe.transformer.attn_processors)
    with pytest.raises(ValueError, match=r"of another training \(data was "):
        train(tmp_path, cache, videos=3)
    tables = [HeadModes((((mode,),) * 2,), tile=(1, 2, 2)) for mode in ("full", "stripe")]
    train(tmp_path / "table", cache, pattern=tables[0])
    with pytest.raises(
        ValueError, match=r"of another training \(pattern was HeadModes\(table=<1 x 2 x 1, .* is HeadModes"
    ):
        train(tmp_path / "table", cache, pattern=tables[1])
    falling = tmp_path / "falling"
    train(falling, cache, decay=0.5)
    with pytest.raises(ValueError, match=r"of another training \(steps was 4, is 8\)"):
        train(falling, cache, decay=0.5, steps=8)
    wider = pipeline(ffn_dim=384)
    with pytest.raises(ValueError, match=r"of another training \(model was "):
        train(tmp_path, cache, wider)
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == written
