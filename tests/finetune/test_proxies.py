"""A training with learned proxies: they move, are averaged, saved, resumed, and used by what loads the LoRA."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PATTERN, SMALL, assert_same, lines, pipeline, train

from vidsparse import Context, ProxyTokens, VideoGrid, load_lora, sparsify, unload_lora
from vidsparse.finetune import Settings
from vidsparse.finetune.checks import check_pipeline
from vidsparse.lora.files import read_recipe
from vidsparse.lora.proxies import proxies_of
from vidsparse.lora.stored import read_names
from vidsparse.patterns.names import build_pattern
from vidsparse.runtime.proxies import proxies_in

LEARNED = ProxyTokens((1, 1, 2), learned=True)


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    """The proxies in the file of a training."""
    file = folder / "pytorch_lora_weights.safetensors"
    return proxies_of(file, read_names(file)[1], read_recipe(file))


def test_they_learn_and_the_lora_brings_them(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    train(tmp_path, cache, pipe, correction=LEARNED, samples=True)
    found = learnt(tmp_path)
    assert {name.split(".")[1] for name in found} == {"0", "1"}
    moved = {name: float(weight.abs().max()) for name, weight in found.items()}
    # Layer 0 runs dense. The other learns at 100 times the rate of the LoRA: 3e-3 * 100, in four steps.
    assert all(value == 0 if ".0." in name else 0.05 < value < 2 for name, value in moved.items())
    assert all(line["density"] < 1 for line in lines(tmp_path))
    # The pipeline keeps both, and another one gets both from the file.
    stay = {
        f"{layer}.{name}": x for layer, p in proxies_in(pipe.transformer).items() for name, x in p.named_parameters()
    }
    assert_same({name: x.detach() for name, x in stay.items()}, found)
    other = pipeline()
    recipe = load_lora(other, tmp_path)
    assert recipe.correction == LEARNED
    hidden, step, text = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    outs = []
    for chosen in (pipe, other):
        with sparsify(chosen, recipe.pattern, correction=recipe.correction), torch.no_grad():
            outs.append(chosen.transformer.eval()(hidden, step, text)[0])
    torch.testing.assert_close(*outs)
    unload_lora(pipe)
    assert not proxies_in(pipe.transformer)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resumed_training_is_the_unbroken_one_to_the_bit(tmp_path: Path, cache: Path, ema: float | None) -> None:
    changes: dict[str, Any] = {"correction": LEARNED, "ema": ema, "lora_plus_ratio": 4.0}
    whole = train(tmp_path / "whole", cache, steps=6, **changes)
    train(tmp_path / "parts", cache, steps=4, **changes)
    assert_same(train(tmp_path / "parts", cache, steps=6, **changes), whole)
    assert_same(learnt(tmp_path / "parts"), learnt(tmp_path / "whole"))
    with pytest.raises(ValueError, match="correction was ProxyTokens"):
        train(tmp_path / "parts", cache, steps=6, **{**changes, "correction": ProxyTokens((1, 1, 2))})


def test_a_checkpoint_is_a_lora_with_proxies(tmp_path: Path, cache: Path) -> None:
    train(tmp_path, cache, correction=LEARNED)
    assert_same(learnt(tmp_path / "checkpoints/step-0000004"), learnt(tmp_path))


def test_a_training_begins_with_those_of_a_lora(tmp_path: Path, cache: Path) -> None:
    train(tmp_path / "before", cache, correction=LEARNED)
    start, still = str(tmp_path / "before"), {"steps": 1, "learning_rate": 1e-30}
    train(tmp_path / "same", cache, correction=LEARNED, start=start, **still)
    assert_same(learnt(tmp_path / "same"), learnt(tmp_path / "before"))
    pipe = pipeline()
    with pytest.raises(ValueError, match=r"has learned proxies for box=\(1, 1, 2\), and the training is of"):
        train(tmp_path / "other", cache, pipe, correction=ProxyTokens((1, 2, 1), learned=True), start=start)
    for correction in (None, ProxyTokens((1, 1, 2))):
        chosen = Settings(**{"pattern": PATTERN, **SMALL, "correction": correction, "start": start})
        with pytest.raises(ValueError, match=r"would drop them; take its own, ProxyTokens.*learned=true box=1,1,2"):
            check_pipeline(pipe, chosen)
    assert not proxies_in(pipe.transformer) and not hasattr(pipe.transformer, "peft_config")


def test_the_other_expert_makes_samples_with_means(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer.eval())
    pipe.register_to_config(boundary_ratio=0.5)
    pattern = PATTERN.pattern
    train(tmp_path, cache, pipe, correction=LEARNED, pattern=pattern, transformer="transformer_2", samples=True)
    assert proxies_in(pipe.transformer_2) and not proxies_in(pipe.transformer)
    assert any((tmp_path / "samples").iterdir())


def test_the_documented_command_leaves_something_to_proxies() -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    command = page.split("## Proxies that learn")[1].split("vidsparse finetune")[1].split("vidsparse generate")[0]
    words = command.replace("\\\n", " ").split()
    given = {name: [b for a, b in pairwise(words) if a == name] for name in ("--pattern", "--set", "--frames")}
    pattern = build_pattern(given["--pattern"][0], settings=given["--set"])
    latent_frames = (int(given["--frames"][0]) - 1) // 4 + 1
    grid = VideoGrid(latent_frames, 16, 16)  # of 128 x 128 pixels
    densities = [float(pattern.plan(grid, Context(layer=n, layers=8)).densities[0]) for n in range(8)]
    assert 0 < sum(densities) / 8 < 0.5


def test_what_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsparse.finetune.settings.check_optimizer", lambda name: None)
    with pytest.raises(ValueError, match="learns at a rate of its own, and optimizer='prodigy' has one for all"):
        Settings(**{"pattern": PATTERN, **SMALL, "correction": LEARNED, "optimizer": "prodigy"})
    with pytest.raises(ValueError, match=r"box=.* does not fit the pattern's key tile"):
        train(tmp_path, cache, correction=ProxyTokens((1, 3, 1), learned=True))
