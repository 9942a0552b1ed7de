"""The accelerator of a training, and what of accelerate's settings a training does not serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.finetune.process.trackers import tracker_names
from vidsparse.finetune.process.zero import CLIPPING, DEEPSPEED, OFF, WEIGHTS, zero_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.settings import Settings

# The variables with which `accelerate launch` passes on a plugin -> its name.
PLUGINS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile (dynamo)",
}
FSDP = "ACCELERATE_USE_FSDP"
# What FSDP must be set to: variable -> the value, the line of a config file, and what serves instead.
SHARDED = {
    "FSDP_VERSION": ("2", "fsdp_version: 2", "weights are divided by PyTorch's fully_shard"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        "true",
        "fsdp_reshard_after_forward: true",
        "else each GPU would hold all weights between forward and backward",
    ),
    "FSDP_OFFLOAD_PARAMS": ("false", "fsdp_offload_params: false", "--offload-base without FSDP uses the CPU's memory"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "false",
        "fsdp_activation_checkpointing: false",
        "--gradient-checkpointing does it",
    ),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "false",
        "fsdp_cpu_ram_efficient_loading: false",
        "every process loads the model",
    ),
}
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what `accelerate launch` or `accelerate config` switch on and a training does not serve.

    Raises:
        NotImplementedError: with the names of all that is on, or with what FSDP or DeepSpeed must be set to.
        ValueError, OSError: DeepSpeed's own file cannot be read.
    """
    wanted = [name for variable, name in PLUGINS.items() if environment.get(variable, "").lower() not in OFF]
    if wanted:
        raise NotImplementedError(
            f"accelerate's settings switch on {' and '.join(wanted)}, which finetune does not serve: it divides the "
            "videos of a step among processes, with --context-parallel each video, and with FSDP 2 the frozen weights; "
            "with DeepSpeed's ZeRO the gradients and states of the LoRA; start it with torchrun, or choose a plain "
            "MULTI_GPU, a DeepSpeed or an FSDP 2 setting in `accelerate config`"
        )
    zero_of(environment)
    if environment.get(FSDP, "").lower() in OFF:
        return
    own = {"FSDP_VERSION": "1"}  # of accelerate, where nothing is said
    for variable, (needed, line, why) in SHARDED.items():
        found = environment.get(variable, own.get(variable, needed)).lower()
        if found != needed:
            raise NotImplementedError(
                f"{variable}={found} is not served: {why}; write `{line}` under fsdp_config in accelerate's settings"
            )


def shards_base(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate's settings divide the frozen weights among the processes: FSDP, or stage 3 of DeepSpeed."""
    zero = zero_of(environment)
    return environment.get(FSDP, "").lower() not in OFF or (zero is not None and zero.stage == WEIGHTS)


def accelerator_for(settings: Settings, folder: Path, cpu: bool, say: Callable[[str], None] = print) -> Accelerator:
    """The accelerator of a training, with its trackers.

    With FSDP it is that of DDP, which averages the gradients of the LoRA; `vidsparse.finetune.memory.sharding` divides
    the frozen weights, also in stage 3 of DeepSpeed. With DeepSpeed it is that of DDP too, and
    `vidsparse.finetune.optim.divided` makes the steps.

    Args:
        settings: of the training; they decide what accelerate would otherwise read from the environment.
        folder: receives TensorBoard's and wandb's files.
        cpu: compute on the CPU.
        say: called with messages for the user.

    Raises:
        NotImplementedError: see `check_launch`.
        ValueError: accelerate already uses another precision in this process.
        ImportError: a tracker's package is missing.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    check_launch()
    trackers = tracker_names(settings.log_with)
    other = os.environ.get(ACCUMULATION, "1")
    if other != "1" and other != str(settings.batch):
        say(f"accelerate's gradient accumulation of {other} is not used: --batch decides, here {settings.batch}")
    clip = os.environ.get(CLIPPING, "auto")
    if clip not in ("auto", "none") and float(clip) != settings.clip and zero_of() is not None:
        say(f"accelerate's gradient clipping of {clip} is not used: --clip decides, here {settings.clip}")
    with _unseen(FSDP), _unseen(DEEPSPEED):
        accelerator = Accelerator(
            mixed_precision=settings.precision,
            # A plugin, because the environment would replace a number.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.batch),
            cpu=cpu,
            log_with=list(trackers) or None,
            project_dir=folder,
            # While one process still encodes, the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
    if trackers:
        own: dict[str, Any] = {"wandb": {"dir": str(folder), "name": folder.resolve().name}}
        # The name of TensorBoard's folder, and of a project of wandb.
        project = "tensorboard" if trackers == ("tensorboard",) else "vidsparse"
        accelerator.init_trackers(project, init_kwargs={name: own[name] for name in trackers if name in own})
    return accelerator


def use_own_gpu(environment: Mapping[str, str] = os.environ) -> None:
    """Make the GPU of this process the current one, as accelerate will: bitsandbytes loads weights onto that."""
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in environment:
        torch.cuda.set_device(own_gpu(environment))


def own_gpu(environment: Mapping[str, str] = os.environ) -> int:
    """The index of the GPU of this process, as accelerate counts: each process may see its own GPU alone."""
    import torch

    return int(environment.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


def check_placed(transformer: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a transformer of bitsandbytes that several processes have loaded onto one GPU, and could not train there.

    Raises:
        ValueError: with what to do before loading.
    """
    import torch

    fixed = getattr(transformer, "is_loaded_in_4bit", False) or getattr(transformer, "is_loaded_in_8bit", False)
    if not fixed or processes(environment) == 1:
        return
    places = (getattr(transformer, "hf_device_map", None) or {}).values()
    gpus = [place for place in places if str(place) not in ("cpu", "disk")]
    found = {torch.device("cuda", place) if isinstance(place, int) else torch.device(place) for place in gpus}
    own = torch.device("cuda", own_gpu(environment))
    if elsewhere := found - {own}:
        raise ValueError(
            f"the quantised weights of this process are on {', '.join(sorted(map(str, elsewhere)))} and it trains on "
            f"{own}; call torch.cuda.set_device(int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()) before "
            "from_pretrained"
        )


def processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher has started for one training."""
    return int(environment.get("WORLD_SIZE", "1"))


@contextmanager
def _unseen(variable: str) -> Iterator[None]:
    """Within the context, a variable of the environment is not set."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value
