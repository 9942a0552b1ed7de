"""Profiles: written and read, refused for other models, carried to other sizes, and clear about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny_wan import tiny, wan_pipeline

from vidsparse import Dense, Pattern, PerLayer, Radial, SlidingTile, VideoGrid, load_profile, sparsify
from vidsparse.profiles import FILE, Expected, Profile, read_profile
from vidsparse.runtime.model_settings import settings_of
from vidsparse.serialize import to_data
from vidsparse.shapes.model import build_transformer

WINDOW = SlidingTile(window=(3, 8, 8), tile=(1, 4, 4))
PATTERN = PerLayer((Dense(), WINDOW), (0, 1))


def profile(pattern: Pattern = PATTERN, **changes: Any) -> Profile:
    transformer = wan_pipeline().transformer
    known: dict[str, Any] = {
        "model": "tiny",
        "transformer": type(transformer).__name__,
        "config": settings_of(transformer),
        "frames": 9,
        "height": 64,
        "width": 64,
        "steps": 5,
        "grid": (3, 16, 16),
        "pattern": to_data(pattern),
        "expected": Expected(psnr=30.0, ssim=0.9, speedup=1.5, density=0.4, videos=2, device="cpu"),
        "found": {"target": "psnr 30"},
    }
    return Profile(**(known | changes))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = profile()
    written.save(tmp_path / "p.json")
    written.save(tmp_path)
    assert load_profile(tmp_path / "p.json") == load_profile(tmp_path) == written
    assert {path.name for path in tmp_path.iterdir()} == {"p.json", FILE}
    assert written.pattern_for(wan_pipeline()) == PATTERN


def test_a_pipeline_runs_it() -> None:
    pipe = wan_pipeline()
    with sparsify(pipe, profile().pattern_for(pipe.transformer)) as run:
        assert run.options.pattern == PATTERN


def test_another_size_scales_its_windows() -> None:
    pipe = wan_pipeline()
    found = profile().pattern_for(pipe, VideoGrid(6, 16, 32, suffix=3))
    assert isinstance(found, PerLayer)
    assert found.patterns[1].window == (6, 8, 16)  # type: ignore[attr-defined]
    assert profile().pattern_for(pipe, VideoGrid(3, 16, 16)) == PATTERN


def test_another_model_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"tuned for tiny \(Wan.*\), and the model at hand.*of 2 layers with 2 heads",
    ):
        profile().pattern_for(tiny())
    other = profile(transformer="LTXVideoTransformer3DModel")
    with pytest.raises(ValueError, match=r"tuned for tiny \(LTXVideoTransformer3DModel\)"):
        other.check(wan_pipeline())


def test_settings_that_another_version_of_diffusers_has_tell_nothing() -> None:
    known = profile().config
    profile(config={**known, "new_option": 3}).check(wan_pipeline())
    profile(config={key: value for key, value in known.items() if key != "eps"}).check(wan_pipeline())


def test_experts_may_differ_in_the_size_of_their_tokens() -> None:
    pipe = wan_pipeline()
    pipe.transformer_2 = build_transformer(2, num_layers=2, num_attention_heads=1)
    profile().check(pipe)
    pipe.transformer_2 = build_transformer(2, num_layers=3, num_attention_heads=1)
    with pytest.raises(ValueError, match="another WanTransformer3DModel of 3 layers"):
        profile().check(pipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2, and this vidsparse reads up to 1; upgrade vidsparse"),
        ({"version": "one"}, "damaged or no profile: version"),
        ({"steps": 0}, "damaged or no profile: steps"),
        ({"grid": [1, 2]}, "damaged or no profile: grid"),
        ({"unknown": 1}, "damaged or no profile: unknown"),
        ({"expected": {"psnr": 30}}, "damaged or no profile: expected.ssim"),
        ({"pattern": {"class": "Nothing"}}, "holds a pattern that cannot be read: class 'Nothing' is neither"),
        ({"pattern": {"class": "Radial", "density": 7}}, "cannot be read: density=7"),
        ({"pattern": {"class": "Reshaped"}}, "holds Reshaped, expected a pattern"),
    ],
)
def test_damaged_profiles_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = json.loads(profile().model_dump_json()) | change
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        load_profile(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text(profile().model_dump_json()[:200])
    with pytest.raises(ValueError, match=r"half\.json is not JSON"):
        load_profile(tmp_path / "half.json")
    with pytest.raises(OSError, match=r"gone\.json does not exist"):
        load_profile(tmp_path / "gone.json")
    with pytest.raises(OSError, match=r"has no vidsparse_profile\.json, so it holds no profile"):
        load_profile(tmp_path)
    with pytest.raises(ValueError, match="damaged or no profile"):
        read_profile([1, 2])


def test_it_goes_to_the_hub_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        """What `push_to_hub` asks of the Hub; it keeps files in a folder."""

        def __init__(self, token: str | None = None):
            assert token == "secret"

        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_file(self, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, commit_message: str) -> str:
            (tmp_path / repo_id / path_in_repo).write_bytes(path_or_fileobj)
            return f"https://hub/{repo_id}: {commit_message}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = profile().push_to_hub("user/tiny-profile", token="secret", commit_message="tuned")
    assert address == "https://hub/user/tiny-profile: tuned"
    assert load_profile(tmp_path / "user/tiny-profile") == profile()


def test_patterns_of_a_profile_are_plain_data() -> None:
    assert read_profile(json.loads(profile(Radial(density=0.2)).model_dump_json())).pattern["density"] == 0.2
