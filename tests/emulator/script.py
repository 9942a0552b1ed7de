"""Run a script that wants a GPU from end to end without one: its kernels in the emulator, some packages blocked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch

from emulator.chip import Chip, emulated

P, T = ParamSpec("P"), TypeVar("T")

# What a machine with torch and triton alone has not.
BLOCKED = (
    *("accelerate", "diffusers", "ftfy", "imageio", "imageio_ffmpeg", "matplotlib", "peft", "rich", "safetensors"),
    *("tensorboard", "tokenizers", "torchmetrics", "transformers", "typer"),
)


class Here(Executor):
    """An executor that calls in this process, at once, whatever it is told of others."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:  # as from a process: it is raised where the result is asked for
            done.set_exception(error)
        return done


@contextmanager
def without(packages: Sequence[str]) -> Iterator[None]:
    """Let these packages not be importable.

    Raises:
        RuntimeError: one of them is imported already.
    """
    if there := sorted(name for name in packages if name in sys.modules):
        raise RuntimeError(f"{', '.join(there)} cannot be blocked: imported already")

    class Blocks(MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name.partition(".")[0] in packages:
                raise ModuleNotFoundError(f"{name} is blocked", name=name)

    with mock.patch.object(sys, "meta_path", [Blocks(), *sys.meta_path]):
        yield


@contextmanager
def pretended_gpu(capability: int) -> Iterator[Chip]:
    """`emulated`, and a torch.cuda that says there is one device, with no memory in use."""
    answers = {
        "is_available": True,
        "is_current_stream_capturing": False,
        "device_count": 1,
        "get_device_name": f"Emulated {capability}",
        "get_device_capability": divmod(capability, 10),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "synchronize": None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        yield stack.enter_context(emulated(capability))


def run_script(
    path: Path, arguments: Sequence[str], capability: int, blocked: Sequence[str] = BLOCKED, **names: Any
) -> Chip:
    """Import a script, give some of its global names other values, and call its `main`.

    Args:
        path: of the script.
        arguments: its command line, without its own name.
        capability: of the chip.
        blocked: packages that it must do without.
        names: values for global names, such as CUDA=torch.device("cpu"), or smaller sizes.

    Returns:
        The chip, which tells what was launched.
    """
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    with ExitStack() as stack:
        stack.enter_context(without(blocked))
        stack.enter_context(mock.patch.dict(sys.modules, {path.stem: module}))  # where a dataclass looks
        stack.enter_context(mock.patch.object(sys, "path", [str(path.parent), *sys.path]))
        stack.enter_context(mock.patch.object(sys, "argv", [str(path), *arguments]))
        specification.loader.exec_module(module)
        for name, value in names.items():
            if not hasattr(module, name):
                raise AttributeError(f"{path} has no global name {name!r}")
            setattr(module, name, value)
        chip = stack.enter_context(pretended_gpu(capability))
        module.main()
    return chip
