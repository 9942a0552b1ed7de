"""Profiles: a tuned pattern for one model in a file, with what it was found by and what to expect of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vidsparse.atomic import replacing
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Pattern
from vidsparse.patterns.scale import scaled
from vidsparse.runtime.model_settings import is_model
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.registry import adapter_for
from vidsparse.serialize import from_data
from vidsparse.shapes.shipped import PROFILE as FILE

if TYPE_CHECKING:
    import torch

VERSION = 1


class Expected(BaseModel):
    """What a profile did to videos that its search never saw.

    Attributes:
        psnr: mean over the videos, in dB to their dense twins. ssim: the same.
        speedup: of denoising, dense seconds over sparse ones, medians of the videos.
        density: of token pairs, mean over all attention calls, dense ones included.
        videos: how many.
        device: what computed them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    psnr: float
    ssim: float
    speedup: float = Field(gt=0)
    density: float = Field(gt=0, le=1)
    videos: int = Field(ge=1)
    device: str


class Profile(BaseModel):
    """A tuned pattern for one model.

    Attributes:
        version: of the form of the file.
        model: name or Hub id of the model that it was tuned for.
        transformer: class of diffusers. config: its settings, so that no other model takes the profile.
        frames, height, width: of the videos, in pixels. steps: of their denoising.
        grid: latent frames, rows and columns of tokens.
        pattern: plain data, as `vidsparse.serialize.to_data` writes it.
        expected: what it did to held-out videos; None: it was not tried.
        found: how: target, candidates, prompts, seeds and versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    model: str
    transformer: str
    config: dict[str, Any]
    frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    steps: int = Field(ge=1)
    grid: tuple[int, int, int]
    pattern: dict[str, Any]
    expected: Expected | None = None
    found: dict[str, Any] = {}

    def pattern_for(self, target: object, grid: VideoGrid | None = None) -> Pattern:
        """The pattern, for `sparsify(target, ...)`.

        Args:
            target: a pipeline or a transformer.
            grid: of the videos, where their size differs from the profile's: windows are scaled along each axis, see
                `vidsparse.patterns.scale`. None: as it is.

        Raises:
            ValueError: the profile is for another model, or holds a pattern that this version does not know.
        """
        self.check(target)
        pattern: Pattern = from_data(self.pattern)
        return pattern if grid is None or grid.view == self.grid else scaled(pattern, VideoGrid(*self.grid), grid)

    def check(self, target: object) -> None:
        """Refuse another model.

        Raises:
            ValueError: says which model the profile is for, and which this is.
        """
        for transformer in transformers_of(target).values():
            if not is_model(transformer, self.transformer, self.config):
                heads = [adapter_for(transformer).heads(x) for x in self_attentions(transformer)]
                raise ValueError(
                    f"this profile was tuned for {self.model} ({self.transformer}), and the model at hand is another "
                    f"{type(transformer).__name__} of {len(heads)} layers with {heads[0]} heads; tune one for it with "
                    "vidsparse tune"
                )

    def save(self, path: str | Path) -> None:
        """Write a JSON file, as a whole or not at all; into a folder under the name `vidsparse_profile.json`."""
        path = Path(path)
        with replacing(path / FILE if path.is_dir() else path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload it to a repository on the Hub, which is created if it is missing; the address of the commit.

        Args:
            repo_id: such as "user/wan2.1-profile".
            options: of `huggingface_hub.HfApi.upload_file`, such as token, revision and commit_message.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        api.create_repo(repo_id, exist_ok=True)
        content = (self.model_dump_json(indent=1) + "\n").encode()
        return str(api.upload_file(path_or_fileobj=content, path_in_repo=FILE, repo_id=repo_id, **options))


def load_profile(source: str | Path) -> Profile:
    """Read a profile.

    Args:
        source: a file, a folder with a `vidsparse_profile.json`, or a Hub id.

    Raises:
        ValueError: the file is no profile, is damaged, or of a later version.
        OSError: the file, or the Hub, cannot be read.
    """
    from vidsparse.generation.config_files import read_config

    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f"profile {source} is not JSON: {error}") from None
    elif path.suffix == ".json":
        raise OSError(f"profile {source} does not exist")
    else:
        data = read_config(str(source), FILE)
        if data is None:
            raise OSError(f"{source} has no {FILE}, so it holds no profile")
    return read_profile(data, str(source))


def read_profile(data: object, source: str = "") -> Profile:
    """A profile from plain data. Raises `ValueError` as `load_profile`."""
    version = data.get("version") if isinstance(data, Mapping) else None
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"profile {source} is of version {version}, and this vidsparse reads up to {VERSION}; upgrade vidsparse"
        )
    try:
        profile = Profile.model_validate(data)
        pattern = from_data(profile.pattern)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"profile {source} is damaged or no profile: {place}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"profile {source} holds a pattern that cannot be read: {error}") from None
    if not isinstance(pattern, Pattern):
        raise ValueError(f"profile {source} holds {type(pattern).__name__}, expected a pattern")
    return profile


def self_attentions(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The video self-attentions of a transformer, in the order they run."""
    return list(adapter_for(transformer).self_attentions(transformer).values())
