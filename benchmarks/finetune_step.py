"""Seconds, FLOPs and memory of one video's forward and backward in the training of a LoRA: dense and sparse.

All patterns take turns in one process, with the same random video, so that what else the machine does falls on all.
The FLOPs are those of matrix products, forward and backward, without cross-attention and what checkpointing repeats.

    python benchmarks/finetune_step.py --transformer transformer_2            # `shapes` at 65 frames, on any machine
    python benchmarks/finetune_step.py --model wan-14b --frames 81 --rounds 1   # random weights, 720p, on a large GPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from subject import results_of, size_of
from torch.utils.flop_counter import FlopCounterMode

import vidsparse
from vidsparse.atomic import replacing
from vidsparse.finetune.objective import Example, flow_loss
from vidsparse.shapes import model
from vidsparse.shapes.shipped import DEFAULT

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FORWARD, BACKWARD = 2, 5  # products of tokens x tokens; the backward computes one of the forward's again
WAN: dict[str, Any] = {"text_dim": 4096, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
WANS = {
    "wan-1.3b": WAN | {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
    "wan-14b": WAN | {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[DEFAULT, *WANS], default=DEFAULT)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: of the model, 1280x720 of Wan)")
    parser.add_argument("--density", type=float, default=0.2, help="of Radial, and the threshold of MixtureOfBlocks")
    parser.add_argument("--tile", type=int, nargs=3, help="of Radial: frames, height, width (default: its own choice)")
    parser.add_argument("--only", nargs="+", help="of dense, radial and mixture; all by default")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="float32: for old CPUs")
    parser.add_argument("--transformer", default="transformer", help=f"of {DEFAULT}: transformer, transformer_2")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up")
    parser.add_argument("--out", type=Path, help="default: results/MODEL/finetune_step_TRANSFORMER_FRAMES_DTYPE.json")
    arguments = parser.parse_args()
    if arguments.model != DEFAULT and arguments.transformer != "transformer":
        parser.error(f"--transformer {arguments.transformer}: {arguments.model} has one; leave it out")

    patterns = {
        "dense": vidsparse.Dense(),
        "radial": vidsparse.Radial(arguments.density, tile=arguments.tile and tuple(arguments.tile)),
        "mixture": vidsparse.MixtureOfBlocks.trained(arguments.density),
    }
    patterns = {name: pattern for name, pattern in patterns.items() if name in (arguments.only or patterns)}
    torch.set_float32_matmul_precision("medium")  # as the training does, for all alike
    transformer = build(arguments)
    example = random_example(transformer, arguments)
    linear = linear_tflop(transformer, example)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"} | {"torch": torch.__version__}
    settings["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    name = f"finetune_step_{arguments.transformer}_{arguments.frames}_{arguments.dtype}.json"
    path = arguments.out or results_of(arguments.model) / name
    seconds: dict[str, list[float]] = {name: [] for name in patterns}
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(arguments.rounds + 1):
        for name, pattern in patterns.items():
            with vidsparse.sparsify(transformer, pattern, strict=True) as run:
                took, memory = step(transformer, example, arguments.dtype)
            if not turn:
                continue
            seconds[name].append(took)
            print(turn, name, f"{took:.2f} s", flush=True)
            calls = [call for call in run.report().calls if call.calls]
            forward = sum(call.flops / call.calls for call in calls)
            attention = forward * (FORWARD + BACKWARD) / FORWARD / 1e12
            rows[name] = {
                "pattern": repr(pattern),
                "ran": run.report().ran,
                "seconds": round(statistics.median(seconds[name]), 3),
                "attention_tflop": round(attention, 3),
                "peak_memory_gib": None if memory is None else round(memory / 2**30, 2),
                "tflop": round(attention + linear, 3),
            }
            if "dense" in seconds:
                ratios = [d / s for d, s in zip(seconds["dense"], seconds[name], strict=True)]
                rows[name]["speedup"] = round(statistics.median(ratios), 2)
            # After each step: a run that is cut short leaves what it found.
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def build(arguments: argparse.Namespace) -> Any:
    """The transformer, with a LoRA in float32 that alone is trained."""
    dtype = getattr(torch, arguments.dtype)
    if arguments.model == DEFAULT:
        transformer = getattr(model.load_pipeline(dtype, arguments.model), arguments.transformer).to(DEVICE)
    else:
        config = WANS[arguments.model] | ({"num_layers": arguments.layers} if arguments.layers else {})
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with DEVICE:
                transformer = WanTransformer3DModel(**config)
        finally:
            torch.set_default_dtype(before)
    transformer.requires_grad_(False).train()
    transformer.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=TARGETS))
    for weight in transformer.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    if arguments.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def random_example(transformer: Any, arguments: argparse.Namespace) -> Example:
    """A random video: what it shows does not change what a step costs."""
    shapes = arguments.model == DEFAULT
    own = "{width}x{height}".format(**size_of(arguments.model)) if shapes else "1280x720"
    width, height = (int(side) for side in (arguments.size or own).split("x"))
    stride = 4 if shapes else 8
    generator = torch.Generator().manual_seed(0)
    size = (1, transformer.config.in_channels, (arguments.frames - 1) // 4 + 1, height // stride, width // stride)
    latents, noise = torch.randn(2, *size, generator=generator)
    text = torch.randn(1, model.MAX_WORDS if shapes else 512, transformer.config.text_dim, generator=generator)
    return Example(latents, noise, text.to(getattr(torch, arguments.dtype)), torch.tensor([0.5])).to(DEVICE)


def step(transformer: torch.nn.Module, example: Example, dtype: str) -> tuple[float, int | None]:
    """Seconds, and the GPU's peak memory in bytes."""
    cuda = DEVICE.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = flow_loss(transformer, example)
    loss.backward()
    transformer.zero_grad()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() if cuda else None


def linear_tflop(transformer: Any, example: Example) -> float:
    """Of everything but attention, forward and backward, counted without computing."""
    with torch.device("meta"):
        copy = WanTransformer3DModel.from_config(transformer.config).requires_grad_(False)
        copy.add_adapter(transformer.peft_config["default"])
    on_meta = Example(*(x.float().to("meta") for x in (example.latents, example.noise, example.text, example.level)))
    with FlopCounterMode(display=False) as counter:
        flow_loss(copy, on_meta).backward()
    counts = counter.get_flop_counts()["Global"]
    attention = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}  # on the meta device; linear layers are (add)mm
    return float(sum(count for op, count in counts.items() if op not in attention)) / 1e12


if __name__ == "__main__":
    main()
