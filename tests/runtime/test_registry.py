"""Transformers that others serve: `register_adapter`, and changes after `sparsify` that the report must tell of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from foreign import WIDTH, Derived, Foreign, ForeignAdapter, Processor

import vidsparse
import vidsparse_pipelines
from vidsparse import Radial, register_adapter, sparsify
from vidsparse.runtime import registry
from vidsparse.runtime.adapter import Adapter, SparseLayer


class Pipeline:
    def __init__(self, transformer: torch.nn.Module):
        self.transformer = transformer


@pytest.fixture
def registered() -> Iterator[None]:
    register_adapter("Foreign", ForeignAdapter)
    yield
    registry._REGISTERED.pop("Foreign")


def call(transformer: torch.nn.Module) -> torch.Tensor:
    video = torch.randn(1, 3, 5, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    out: torch.Tensor = transformer(video, 500.0)
    return out


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("cls", [Foreign, Derived])
@torch.no_grad()
def test_a_registered_adapter_serves_its_class_and_those_derived_from_it(cls: type[Foreign]) -> None:
    transformer = cls()
    dense = call(transformer)
    with sparsify(transformer, Radial(density=1.0, tile=(1, 4, 4))) as run:
        torch.testing.assert_close(call(transformer), dense)
    assert [(c.tokens, c.reason) for c in run.report().calls] == [(105, None)]
    with sparsify(transformer, Radial(density=0.3, tile=(1, 4, 4))) as run:
        assert not torch.allclose(call(transformer), dense)
    assert run.report().density < 0.6


def test_a_class_that_nobody_registered_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"no adapter for Foreign; .*register_adapter adds others"):
        sparsify(Foreign(), Radial(density=0.3))


@pytest.mark.usefixtures("registered")
def test_a_registered_adapter_goes_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vidsparse_pipelines.ADAPTERS, "Foreign", ("vidsparse_pipelines.wan", "WanAdapter"))
    assert isinstance(registry.adapter_for(Foreign()), ForeignAdapter)


class HalfAnAdapter(Adapter):
    def processor(self, original: Any, layer: SparseLayer) -> Any:
        return original


@pytest.mark.parametrize(
    ("transformer", "adapter", "message"),
    [
        (Foreign, ForeignAdapter, r"must be the name of a class"),
        ("Foreign", ForeignAdapter(), r"must be a subclass of .*Adapter, not an instance"),
        ("Foreign", Foreign, r"must be a subclass"),
        ("Foreign", HalfAnAdapter, r"HalfAnAdapter must define self_attentions"),
    ],
    ids=["class", "instance", "other-class", "abstract"],
)
def test_bad_registrations(transformer: Any, adapter: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register_adapter(transformer, adapter)
    assert "Foreign" not in registry._REGISTERED


@pytest.mark.usefixtures("registered")
@torch.no_grad()
def test_the_report_tells_of_an_exchanged_transformer() -> None:
    pipe = Pipeline(Foreign())
    run = sparsify(pipe, Radial(density=0.3, tile=(1, 4, 4)))
    call(pipe.transformer)
    assert run.report().lost == ()
    pipe.transformer = Foreign()
    assert "pipe.transformer is another model than at sparsify" in "\n".join(run.report().lost)
    assert f"lost: {run.report().lost[0]}" in str(run.report())
    assert run.report().to_dict()["lost"] == list(run.report().lost)
    run.restore()
    assert run.report().lost == ()


@pytest.mark.usefixtures("registered")
def test_the_report_tells_of_processors_set_after_sparsify() -> None:
    transformer = Foreign()
    original = transformer.attention.processor
    with sparsify(transformer, vidsparse.Dense()) as run:
        transformer.attention.processor = Processor()
        call(transformer)
    assert transformer.attention.processor is original
    with sparsify(transformer, vidsparse.Dense()) as run:
        transformer.attention.processor = Processor()
        assert "1 of 1 attention layers were given other processors after sparsify" in str(run.report())
