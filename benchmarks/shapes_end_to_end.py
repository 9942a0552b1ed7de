"""Seconds and peak memory of a `shapes` model, dense and with radial attention, each in processes of its own.

Peak memory moves by some percent from one process to the next, so every figure is a median over `--rounds`. It is taken
twice: as it is, and where glibc gives freed memory back at once, which tells what the computation needs from what the
allocator keeps.

python benchmarks/shapes_end_to_end.py --frames 65 --density 0.2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from subject import add_model, results_of, size_of

from vidsparse.atomic import replacing

GIVE_BACK = {"MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's first value, which it would raise by itself
PROMPT = "a red circle moving left on a blue background"


def child(arguments: argparse.Namespace) -> None:
    """Generate once and print seconds and peak memory as JSON."""
    import torch

    import vidsparse
    from vidsparse.shapes import model

    pipe = model.load_pipeline(getattr(torch, arguments.dtype), arguments.model)
    pipe.set_progress_bar_config(disable=True)
    settings = dict(**size_of(arguments.model), max_sequence_length=model.MAX_WORDS, guidance_scale=arguments.guidance)
    pipe(PROMPT, num_frames=5, num_inference_steps=1, **settings)  # warm-up
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pattern: vidsparse.Pattern = vidsparse.Dense()
    if arguments.child == "sparse":
        pattern = vidsparse.StepSchedule(vidsparse.Radial(density=arguments.density), dense_steps=arguments.dense_steps)
    with vidsparse.sparsify(pipe, pattern) as run:
        started = time.perf_counter()
        latents = pipe(
            PROMPT,
            num_frames=arguments.frames,
            num_inference_steps=arguments.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **settings,
        ).frames
        denoising = time.perf_counter() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = run.report()
    latents = latents * torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = latents + torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    started = time.perf_counter()
    with torch.no_grad():
        pipe.vae.decode(latents.to(pipe.vae.dtype))
    print(
        json.dumps(
            {
                "denoising_s": round(denoising, 2),
                "decoding_s": round(time.perf_counter() - started, 2),
                "attention_layers_s": round(report.seconds, 2),
                "warm_mib": round(resident),
                "denoising_peak_mib": round(memory),
                "density": round(report.density, 4),
                "flops_saved": round(report.flops_saved, 4),
            }
        )
    )


def generate(kind: str, **environment: str) -> dict[str, float]:
    """What a process of its own prints."""
    command = [sys.executable, *sys.argv, "--child", kind]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--dense-steps", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps; each costs the same")
    parser.add_argument("--guidance", type=float, default=1.0, help="1: one pass a step, so that long runs stay short")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    add_model(parser)
    parser.add_argument("--child", choices=["dense", "sparse"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    runs: dict[str, list[dict[str, float]]] = {"dense": [], "sparse": []}
    for _ in range(arguments.rounds):
        for kind, done in runs.items():
            needed = generate(kind, **GIVE_BACK)["denoising_peak_mib"]
            done.append(generate(kind) | {"denoising_needed_mib": needed})
            print(kind, done[-1], flush=True)
    dense, sparse = ({k: statistics.median(r[k] for r in done) for k in done[0]} for done in runs.values())
    results: dict[str, object] = {"dense": dense, "sparse": sparse}
    results["denoising_speedup"] = round(dense["denoising_s"] / sparse["denoising_s"], 2)
    whole = [r["denoising_s"] + r["decoding_s"] for r in (dense, sparse)]
    results["whole_speedup"] = round(whole[0] / whole[1], 2)
    for name in ("peak", "needed"):
        ratio = sparse[f"denoising_{name}_mib"] / dense[f"denoising_{name}_mib"]
        results[f"{name}_memory_ratio"] = round(ratio, 3)
    results["settings"] = {k: v for k, v in vars(arguments).items() if k != "child"}
    print(json.dumps({k: v for k, v in results.items() if k not in ("dense", "sparse")}))
    name = f"shapes_end_to_end_{arguments.frames}_{arguments.dtype}.json"
    with replacing(results_of(arguments.model) / name) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
