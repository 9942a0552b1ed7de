"""Freed memory is used again: the second tensor of a size costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from vidsparse.generation.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24).add(1)  # two tensors of 64 MiB, 32,768 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
returned = faults()
taken = keep_freed_memory()
for _ in range(20):  # until the pieces that are free have the right sizes
    faults()
print(taken, returned, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_is_used_again() -> None:
    # In a process of its own, because the setting stays.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    taken, returned, kept = done.stdout.split()
    assert taken == "True" and int(kept) < 100
    assert int(kept) < int(returned)


def test_another_system_has_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidsparse.generation import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
