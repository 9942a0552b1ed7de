"""A package that is missing, or does not serve the chip, is refused with what to do."""

import sys
from collections.abc import Iterator

import pytest
import torch

from vidsparse_kernels.providers import PROVIDERS, cudnn, flash, package, provider

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What earlier tests found is forgotten."""
    package.load.cache_clear()
    yield
    package.load.cache_clear()


@pytest.mark.parametrize("impl", PROVIDERS)
def test_without_the_package_it_says_what_to_install(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cudnn": cudnn.PACKAGE, "fa4": flash.PACKAGE}[impl]
    monkeypatch.setitem(sys.modules, found.module.split(".")[0], None)  # importing it fails
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert f"needs the package {found.installs} (ModuleNotFoundError" in str(provider(impl).lacks(CUDA))
    with pytest.raises(NotImplementedError, match=f"impl='{impl}' needs the package .*; use impl='auto'"):
        found.functions()


@pytest.mark.parametrize("impl", PROVIDERS)
def test_a_device_is_refused_before_the_package_is_imported(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "load", lambda module: pytest.fail("imported"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an older chip")
    assert "needs a major compute capability of 9, 10" in str(provider(impl).lacks(CUDA))
    assert provider(impl).lacks(torch.device("cpu")) == "needs tensors on a CUDA device, these are on cpu"
