"""The command line in a process of its own, which starts in moments and can be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

# A server imports these once, and forks: a process starts in moments.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "diffusers.models.transformers.transformer_wan",
        "diffusers.pipelines.wan.pipeline_wan",
        "vidsparse.doctor.twin",
        "vidsparse.generation.sample",
        "vidsparse.runtime.parallelism",
    ]
)


def start(folder: Path, *arguments: object, **environment: object) -> BaseProcess:
    """Start the command line in a folder; what it prints is appended to a file beside the folder."""
    words = [str(word) for word in arguments]
    process = context.Process(target=_run, args=(str(folder), words, {k: str(v) for k, v in environment.items()}))
    process.start()
    return process


def printed(folder: Path) -> str:
    """What all processes of a folder have printed."""
    return folder.with_suffix(".log").read_text(encoding="utf-8")


def _run(folder: str, arguments: list[str], environment: dict[str, str]) -> None:
    import torch

    from vidsparse.cli import main

    torch.set_num_threads(1)
    os.environ |= environment
    os.chdir(folder)
    with Path(folder).with_suffix(".log").open("a", encoding="utf-8", buffering=1) as log:
        sys.argv, sys.stdout, sys.stderr = ["vidsparse", *arguments], log, log
        main()
