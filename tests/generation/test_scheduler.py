"""Other solvers and noise levels: against the formula, on data whose flow is known, and wherever they are set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
from command_line import PROMPT, refused, tiny_pipeline, vidsparse_in_a_folder
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_lora import RECIPE, pipeline, trained_pipeline

from vidsparse import LoraRecipe, build_scheduler, load_lora, save_lora, seed_steps
from vidsparse.finetune.noise import shift_of

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
trained = pytest.fixture(scope="module")(trained_pipeline)
MEAN, STD = 0.7, 0.4  # of the data whose flow is known


def unipc(**changes: Any) -> Any:
    return UniPCMultistepScheduler(
        **{"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, **changes}
    )


def flow(noisy: torch.Tensor, level: float) -> torch.Tensor:
    """The mean of noise minus data, given their mixture: data are normal with `MEAN` and `STD`, each for itself."""
    away = (noisy - (1 - level) * MEAN) / ((1 - level) ** 2 * STD**2 + level**2)
    return level * away - (MEAN + (1 - level) * STD**2 * away)


def generate(scheduler: Any, noise: torch.Tensor, steps: int = 100) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = noise.clone()
    for timestep, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(flow(x, float(level)), timestep, x, return_dict=False)[0]
    return x


def test_nothing_asked_for_is_the_scheduler_itself() -> None:
    scheduler = unipc()
    assert build_scheduler(scheduler) is scheduler and build_scheduler(scheduler, "own") is scheduler


@pytest.mark.parametrize("sampler", ["own", "sde"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_noise_levels_are_spaced_by_the_shift(sampler: str, shift: float) -> None:
    before = unipc()
    scheduler = build_scheduler(before, sampler, shift)
    assert shift_of(scheduler) == shift and shift_of(before) == 3.0
    scheduler.set_timesteps(10)
    uniform = torch.linspace(0.999, 0, 11, dtype=torch.float64)[:-1]
    expected = shift * uniform / (1 + (shift - 1) * uniform)
    # The two count u from 1000 to 1 and from 999 to 0 thousandths, or in between.
    torch.testing.assert_close(scheduler.sigmas[:10].double(), expected, rtol=0, atol=1.1e-3 * shift)


def test_sde_keeps_the_shift_of_the_scheduler() -> None:
    assert shift_of(build_scheduler(unipc(flow_shift=5.0), "sde")) == 5.0


@pytest.mark.parametrize("shift", [3.0, 8.0])
def test_both_samplers_give_the_data_and_only_one_forgets_its_noise(shift: float) -> None:
    noise = torch.randn(1, 1, 20_000, generator=torch.Generator().manual_seed(0))
    kept = {}
    for sampler in ("own", "sde"):
        seed_steps(0)
        found = generate(build_scheduler(unipc(), sampler, shift), noise)
        # The mean of 20,000 is within 5 * 0.4 / sqrt(20,000) = 0.014; 100 steps do the rest.
        assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
        assert float(found.std()) == pytest.approx(STD, rel=0.05)
        kept[sampler] = float(torch.corrcoef(torch.stack([found.flatten(), noise.flatten()]))[0, 1])
    assert kept["own"] > 0.99 and abs(kept["sde"]) < 0.3


def test_steps_draw_what_was_seeded_and_not_the_first_noise() -> None:
    noise = torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(5))

    def once(seed: int) -> torch.Tensor:
        seed_steps(seed)
        return generate(build_scheduler(unipc(), "sde"), noise)

    assert torch.equal(once(5), once(5)) and not torch.equal(once(5), once(6))
    seed_steps(5)
    assert not torch.equal(torch.randn(1, 1, 1000), noise)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("euler",), "sampler='euler' is unknown; choose one of own, sde"), ((None, 0.0), "flow_shift=0.0 must be above")],
    ids=["sampler", "shift"],
)
def test_what_is_unknown_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler(unipc(), *arguments)
    with pytest.raises(ValueError, match=message):
        LoraRecipe(**dict(zip(("sampler", "flow_shift"), arguments, strict=False)))


def test_schedulers_of_another_kind_are_refused() -> None:
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(NotImplementedError, match="FlowMatchEulerDiscreteScheduler has no stochastic counterpart"):
        build_scheduler(euler, "sde")
    assert build_scheduler(euler, flow_shift=7.0).config.shift == 7.0
    for other in (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        UniPCMultistepScheduler(prediction_type="epsilon"),
    ):
        with pytest.raises(NotImplementedError, match="only schedulers of flow matching with a constant shift"):
            build_scheduler(other, "sde")


def test_a_lora_brings_its_sampler(trained: Any, tmp_path: Path) -> None:
    save_lora(tmp_path, trained, replace(RECIPE, sampler="sde", flow_shift=9.0))
    pipe = pipeline()
    before = pipe.scheduler
    recipe = load_lora(pipe, tmp_path)
    assert (recipe.sampler, recipe.flow_shift) == ("sde", 9.0) and "for sampler sde, for shift 9" in recipe.summary
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler) and pipe.scheduler.config.flow_shift == 9.0
    assert before.config.flow_shift == 3.0
    pipe = pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(NotImplementedError):
        load_lora(pipe, tmp_path)
    assert not hasattr(pipe.transformer, "peft_config"), "refused before anything was loaded"


def test_generate_takes_sampler_and_shift(vidsparse: Any, tiny: Path) -> None:
    def video(*options: Any) -> bytes:
        sizes = ["--frames", 5, "--height", 16, "--width", 16, "--steps", 3]
        files = "-o", "a.mp4", "--report", "a.json", "--overwrite"
        done = vidsparse("generate", PROMPT, "--model", tiny, *sizes, *options, *files)
        assert done.code == 0, done.err
        return imageio.imread("a.mp4", plugin="FFMPEG").tobytes()

    stochastic = video("--sampler", "sde")
    assert json.loads(Path("a.json").read_text())["request"]["sampler"] == "sde"
    assert video("--sampler", "sde") == stochastic, "the seed decides the noise of the steps too"
    assert len({stochastic, video(), video("--flow-shift", 9), video("--sampler", "sde", "--flow-shift", 9)}) == 4
    assert video("--sampler", "own") == video()


@pytest.mark.parametrize(
    ("option", "message"), [(("--sampler", "euler"), "choose one of own, sde"), (("--flow-shift", 0), "above 0")]
)
def test_the_command_line_refuses_what_is_unknown(vidsparse: Any, option: Any, message: str) -> None:
    refused(vidsparse("generate", PROMPT, *option), message)
