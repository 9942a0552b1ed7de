"""Train the `shapes` text-to-video model on its endless world, on a CPU or a GPU.

    python examples/shapes_training autoencoder --out runs/shapes   # fine-tune the autoencoder
    python examples/shapes_training latents --out runs/shapes   # draw and encode videos; may run beside the training
    python examples/shapes_training train --out runs/shapes     # the transformer, phase by phase
    python examples/shapes_training strip --out runs/shapes     # a picture of what it makes by now
    python examples/shapes_training keep --out runs/shapes      # put the newest weights into the repository
    python examples/shapes_training export --out runs/shapes    # and into the package, as the model `shapes`
    python examples/shapes_training all --device cuda --out runs/shapes   # all of it, in minutes

Each command goes on from what it left in --out, and where that has nothing, from the weights in this folder.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
from pathlib import Path

import torch
from commands import COMMANDS
from optimization import STOP
from plan import PLANS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, latents and the log")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--plan", choices=PLANS, help="default: the plan named after the device")
    parser.add_argument("--phase", help="to train alone; default: the experts of the plan, one after the other")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop at a checkpoint after so long")
    parser.add_argument("--videos", type=int, default=4096, help="to draw and encode")
    parser.add_argument("--steps", type=int, default=400, help="of the autoencoder")
    parser.add_argument("--prompts", type=int, default=8, help="of the strip")
    parser.add_argument("--sampling-steps", type=int, default=20, help="of the strip")
    parser.add_argument("--threads", type=int, help="of torch; on a busy machine 1 is the most efficient")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    if given.threads:
        torch.set_num_threads(given.threads)
    given.plan = PLANS[given.plan or given.device]
    names = [phase.name for phase in given.plan.phases]
    if given.phase not in (None, *names):
        parser.error(f"--phase {given.phase} is unknown; the plan has {', '.join(names)}")
    given.until = time.time() + 60 * given.minutes
    given.out.mkdir(parents=True, exist_ok=True)
    COMMANDS[given.command](given)


if __name__ == "__main__":
    main()
