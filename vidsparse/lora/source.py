"""Where a LoRA is: a name that vidsparse knows, a file, a folder, or the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from vidsparse.lora.stored import CONFIG_FILE, PEFT_FILE

KNOWN = {"shapes-long": Path(__file__).parents[1] / "shapes/loras/long"}
FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it


def find_lora(source: str | Path) -> Path:
    """The file of a LoRA, from the Hub if it is not here.

    Args:
        source: a known name, a file, a folder, or a Hub id, also with a file: owner/name/file.safetensors. Of the
            folder of a training that has not finished, the LoRA of the newest checkpoint.

    Raises:
        OSError: no such name, file, folder or Hub id.
        ValueError: a place without a file of safetensors, or with several none of which has diffusers' name.
    """
    if str(source) in KNOWN:
        folder = KNOWN[str(source)]
        if not folder.is_dir():
            raise FileNotFoundError(f"the LoRA {source!r} ships with vidsparse, but {folder} is missing: reinstall it")
        return folder / _choose((path.name for path in folder.iterdir()), source)
    path = Path(source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is not a LoRA: expected a safetensors file, whose name ends in .safetensors")
        return path
    if path.is_dir():
        return checkpoint_of(path) or path / _choose((inside.name for inside in path.iterdir()), source)
    found = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?:/(.+\.safetensors))?", str(source))
    if found is None:
        near = get_close_matches(str(source).lower(), KNOWN, cutoff=0.7)
        known = f"did you mean {near[0]}?" if near else f"known names are {', '.join(KNOWN)}"
        raise FileNotFoundError(
            f"no LoRA {str(source)!r}: it is neither a file or folder here, nor a Hub id such as owner/name; {known}"
        )
    return _download(found[1], found[2])


def checkpoint_of(source: str | Path) -> Path | None:
    """The LoRA of the newest checkpoint in the folder of a training; None where there is a finished LoRA, or none."""
    folder = Path(source)
    if not (folder / "checkpoints").is_dir() or any(folder.glob("*.safetensors")):
        return None
    saved = {int(path.parent.name[5:]): path for path in folder.glob(f"checkpoints/step-*/{FILE}")}
    return saved[max(saved)] if saved else None


def _choose(names: Iterable[str], source: str | Path) -> str:
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if FILE in weights or len(weights) == 1:
        return FILE if FILE in weights else weights[0]
    if not weights:
        raise ValueError(f"{source} holds no LoRA: it has no safetensors file, such as {FILE}")
    some = f"{', '.join(weights[:4])}{', ...' if len(weights) > 4 else ''}"
    raise ValueError(f"{source} holds {len(weights)} files of safetensors, {some}: name the file")


def _download(repository: str, name: str | None) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        # The usual name first: what was downloaded before is found without a network.
        return Path(hf_hub_download(repository, name or FILE))
    except OSError as error:
        other = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if name is not None or not other:
            raise OSError(f"no LoRA {repository!r}: there is no such folder here, and the Hub says: {error}") from error
    names = list_repo_files(repository)
    if (name := _choose(names, repository)) == PEFT_FILE and CONFIG_FILE in names:
        hf_hub_download(repository, CONFIG_FILE)  # into the same folder, for `read_stored`
    return Path(hf_hub_download(repository, name))
