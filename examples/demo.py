"""The first thing to run: one prompt, a dense and a sparse video, and what the sparsity bought and cost.

    python examples/demo.py --out demo

It is one call of `vidsparse compare`, which it prints, so that you can go on from there.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

PROMPT = "a red circle moving left on a blue background"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the videos (default: demo)")
    parser.add_argument("--fast", action="store_true", help="few steps: to see that it runs, not to look at")
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
    # On so few tokens only mild settings keep the first frame and the outlines of this small model.
    settings = {"--pattern": "radial", "--density": "0.4", "--dense-steps": "8", "--dense-layers": "0"}
    options = ["compare", PROMPT, *(part for setting in settings.items() for part in setting)]
    options += [part for option, name in files.items() for part in (option, str(arguments.out / name))]
    options += ["--steps", "6"] if arguments.fast else []
    print("$ vidsparse", shlex.join(options), flush=True)
    return subprocess.run([sys.executable, "-m", "vidsparse.cli", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
