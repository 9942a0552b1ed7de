"""What accelerate's settings ask of DeepSpeed, and what of it a training serves: ZeRO (arXiv 1910.02054) of a LoRA."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vidsparse.finetune.settings import Settings

DEEPSPEED, FILE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"
CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
OFF = ("", "0", "false", "no", "none")
OLDEST = (0, 19, 8)  # of DeepSpeed: it leaves out steps in float32 too, and frees its groups
STATES, GRADIENTS, WEIGHTS = 1, 2, 3  # what a stage divides, besides what those before it do
NOTHING = "that divides nothing: choose a plain MULTI_GPU setting in `accelerate config`"
STATES_STAY = "the states of a LoRA are small, and divided: write `offload_optimizer_device: none`"
WEIGHTS_STAY = "--offload-base keeps the frozen weights in the CPU's memory: write `offload_param_device: none`"
# Variables of `accelerate launch`, beside the stage and the file -> what to do where they are on.
VARIABLES = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": STATES_STAY,
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": WEIGHTS_STAY,
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "every process loads the model: write `zero3_init_flag: false`",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "only the LoRA is saved: write `zero3_save_16bit_model: false`",
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "no model here has them: leave deepspeed_moe_layer_cls_names out",
}
# Keys of a DeepSpeed file that an option of ours decides.
DECIDED = {
    "train_batch_size": "--batch and the number of processes decide",
    "train_micro_batch_size_per_gpu": "each video is a pass of its own, and --batch says how many a step has",
    "gradient_accumulation_steps": "--batch decides",
    "gradient_clipping": "--clip decides",
    "optimizer": "--optimizer and --lr decide",
    "scheduler": "--lr-scheduler decides",
    "bf16.enabled": "the LoRA learns in float32, and --precision decides what a step computes in",
    "fp16.enabled": "the LoRA learns in float32, and --precision decides what a step computes in",
    "zero_optimization.offload_optimizer.device": "the states of a LoRA are small, and divided",
    "zero_optimization.offload_param.device": "--offload-base keeps the frozen weights in the CPU's memory",
}
# Those that DeepSpeed is given as they are.
PASSED = (
    *("steps_per_print", "wall_clock_breakdown"),
    *(
        f"zero_optimization.{key}"
        for key in (
            *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm"),
            *("reduce_bucket_size", "reduce_scatter"),
        )
    ),
)
# DeepSpeed lays the weights that a process learns end to end, as one vector.
REASONS = {
    "muon": "it makes matrices orthogonal, and a process has parts of them",
    "prodigy": "it finds its rate from all weights, and a process has a part of them",
    "adamw-8bit": "it rounds states in blocks, and those of a part are not those of the whole weights",
}


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed divides among the processes of a training.

    Attributes:
        stage: 1: the states of the optimizer, 2: also the gradients of the LoRA, 3: also the frozen weights, which
            PyTorch's `fully_shard` divides: DeepSpeed is given the LoRA alone, which stays whole.
        passed: keys of a DeepSpeed file, with dots, that DeepSpeed is given, and their values.
    """

    stage: int = GRADIENTS
    passed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def divides(self) -> str:
        """What is divided, in words."""
        return "gradients and optimizer states" if self.stage >= GRADIENTS else "optimizer states"

    def config(self, videos: int, clip: float, bucket: int) -> dict[str, Any]:
        """What `deepspeed.initialize` is given.

        Args:
            videos: of a step in each process.
            clip: the largest norm of the gradient.
            bucket: numbers of the gradient that are sent together, where a file does not say.
        """
        found: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": videos,
            "gradient_clipping": clip,
            "steps_per_print": 1 << 62,
            "zero_optimization": {"stage": min(self.stage, GRADIENTS), "reduce_bucket_size": bucket},
        }
        for name, value in self.passed.items():
            *sections, key = name.split(".")
            place = found
            for section in sections:
                place = place[section]
            place[key] = value
        return found


def zero_of(environment: Mapping[str, str] = os.environ) -> Zero | None:
    """What accelerate's settings ask of DeepSpeed, or None where they do not.

    Raises:
        NotImplementedError: something that a training does not serve; names it.
        ValueError: the DeepSpeed file is no JSON, or no table.
        OSError: it cannot be read.
    """
    if environment.get(DEEPSPEED, "").lower() in OFF:
        return None
    for variable, instead in VARIABLES.items():
        if (found := environment.get(variable, "")).lower() not in OFF:
            raise NotImplementedError(f"{variable}={found} is not served: {instead} in accelerate's deepspeed_config")
    asked = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(GRADIENTS))
    passed: dict[str, Any] = {}
    if (file := environment.get(FILE, "")).lower() not in OFF:
        keys = dict(_flat(_read(file)))
        stage = keys.pop("zero_optimization.stage", "auto")
        asked = asked if stage == "auto" else str(stage)
        passed = {key: value for key, value in keys.items() if not _is_decided(key, value, file)}
    if asked not in map(str, (STATES, GRADIENTS, WEIGHTS)):
        instead = NOTHING if asked == "0" else "choose 2, or 3 to divide the frozen weights too"
        raise NotImplementedError(f"DeepSpeed's ZeRO stage {asked} is not served: {instead}")
    return Zero(int(asked), passed)


def check_zero(settings: Settings, device: torch.device | None = None) -> None:
    """Refuse settings that DeepSpeed's ZeRO cannot be combined with, before a model is loaded.

    Args:
        settings: of the training.
        device: of the training; None: nothing will be trained, and no package is needed.

    Raises:
        NotImplementedError: an optimizer or a precision that does not work on a part of the LoRA.
        ImportError: DeepSpeed is not installed, or too old.
        ValueError: DeepSpeed computes on another kind of device.
    """
    if settings.optimizer in REASONS:
        raise NotImplementedError(
            f"optimizer={settings.optimizer!r} cannot be combined with DeepSpeed: {REASONS[settings.optimizer]}; take "
            "optimizer='adamw', or choose a plain MULTI_GPU or an FSDP 2 setting in `accelerate config`"
        )
    if settings.precision == "fp16":
        raise NotImplementedError(
            "precision='fp16' scales losses, which is not served with DeepSpeed; take 'bf16', or choose a plain "
            "MULTI_GPU or an FSDP 2 setting in `accelerate config`"
        )
    if device is None:
        return
    needed = ".".join(map(str, OLDEST))
    if find_spec("deepspeed") is None:
        raise ImportError(
            f"accelerate's settings switch on DeepSpeed, which is not installed: pip install 'deepspeed>={needed}'"
        )
    if tuple(map(int, re.findall(r"\d+", found := version("deepspeed"))[:3])) < OLDEST:
        raise ImportError(
            f"DeepSpeed {found} makes steps of gradients that are not finite; pip install 'deepspeed>={needed}'"
        )
    from deepspeed.accelerator import get_accelerator

    if (kind := get_accelerator().device_name()) != device.type:
        raise ValueError(
            f"DeepSpeed computes on {kind} and the training on {device.type}; set DS_ACCELERATOR={device.type} in the "
            "environment"
        )


def _read(file: str) -> dict[str, Any]:
    """The DeepSpeed file: a path, or as accelerate takes it too, JSON or JSON in base64."""
    text = file
    if os.path.isfile(file):  # a name that is too long for a path is none
        text = Path(file).read_text(encoding="utf-8")
    elif not file.lstrip().startswith("{"):
        try:
            text = base64.urlsafe_b64decode(file).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            raise FileNotFoundError(f"deepspeed_config_file={file!r} does not exist; name a JSON file") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed_config_file={file!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(
            f'deepspeed_config_file={file!r} must be a table of JSON, such as {{"zero_optimization": ...}}'
        )
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables, by their keys with dots."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_decided(key: str, value: Any, file: str) -> bool:
    """Whether a key leaves to our options what they decide; False for one that DeepSpeed is given.

    Raises:
        NotImplementedError: it is neither; names it.
    """
    if value == "auto" or (key in DECIDED and str(value).lower() in (*OFF, "0.0")):
        return True
    if key in PASSED:
        return False
    why = DECIDED.get(key, DECIDED.get(key.split(".")[0]))
    raise NotImplementedError(
        f"{key}={value!r} in deepspeed_config_file={file!r} is not served"
        + (f': {why}; write "auto", or leave it out' if why else "; leave it out")
    )
