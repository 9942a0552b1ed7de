"""The first thing to run: what sparsity saves at the size of a real model, and two videos of a small one.

    python examples/demo.py --out demo

It runs `vidsparse bench` and `vidsparse compare`, prints both commands, and ends with what to type next.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

PROMPT = "a green triangle moving left on a white background"
NEXT = (
    (["generate", "a green square bouncing on a white background"], "a video of your own; --help has all options"),
    (["estimate", "wan2.1-14b", "--gpu", "H100"], "what a real model would gain; without a name: which are known"),
    (["doctor", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"], "whether your model works, without its weights"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the videos (default: demo)")
    parser.add_argument("--fast", action="store_true", help="few steps and frames: to see that it runs, not to look at")
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot make the folder {arguments.out}: {error.strerror}")
    files = {
        "--output": "side_by_side.mp4",
        "--dense-output": "dense.mp4",
        "--sparse-output": "sparse.mp4",
        "--strip": "strip.png",
        "--json": "comparison.json",
    }
    options = ["compare", PROMPT, "--preset", "shapes"]
    options += [part for option, name in files.items() for part in (option, str(arguments.out / name))]
    options += ["--repeat", "1", "--overwrite"]
    options += ["--steps", "4", "--frames", "5", "--height", "64", "--width", "64"] if arguments.fast else []
    size = ["--frames", "5" if arguments.fast else "81", "--height", "480", "--width", "832"]
    print("One attention layer of Wan 2.1 (two of its heads) on this machine:", flush=True)
    failed = run(["bench", *size, "--density", "0.2"])
    print("\nA dense and a sparse video of the small model that comes with vidsparse:", flush=True)
    failed = failed or run(options)
    if not failed:
        print_next(arguments.out)
    return failed


def print_next(out: Path) -> None:
    """Print what to type next; `vidsparse` stands beside this Python."""
    program = Path(sys.executable).with_name("vidsparse")
    try:
        name = str(program.relative_to(Path.cwd()))
    except ValueError:  # installed elsewhere
        name = "vidsparse"
    print(f"\nLook at {out / 'side_by_side.mp4'}: dense on the left, sparse on the right. Next:")
    for words, why in NEXT:
        print(f"  {shlex.join([name, *words])}\n      {why}")


def run(options: list[str]) -> int:
    """Print a command of vidsparse, run it, and return its exit code."""
    print("$ vidsparse", shlex.join(options), flush=True)
    return subprocess.run([sys.executable, "-m", "vidsparse.cli", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
