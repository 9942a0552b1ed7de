"""Reads the settings of a model, in a folder or on the Hub, without its weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE, INDEX = "config.json", "model_index.json"


@lru_cache(maxsize=64)
def _from_hub(model: str, file: str) -> str | None:
    """Path of a file of a model on the Hub, in the local cache; None where the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(model, file))
    except LocalEntryNotFoundError:
        raise OSError(
            f"cannot reach huggingface.co, and {file} of model {model!r} is not in the local cache; check the name and "
            "the network, or give a folder"
        ) from None
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        reason = str(error.server_message or error).strip().splitlines()[0]
        raise OSError(f"cannot read model {model!r} on huggingface.co: {reason}") from error


def read_config(source: str, file: str) -> dict[str, Any] | None:
    """The settings in a JSON file of a model.

    Args:
        source: a folder or a Hub id.
        file: path within it, such as "transformer/config.json".

    Returns:
        The settings; None where the model has no such file.

    Raises:
        ValueError: the file does not hold an object of JSON.
        OSError: the file, or the Hub, cannot be read.
    """
    local = Path(source) / file
    if not Path(source).is_dir():
        found = _from_hub(source, file)
        if found is None:
            return None
        local = Path(found)
    elif not local.is_file():
        return None
    try:
        settings = json.loads(local.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} of {source} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} of {source} holds {type(settings).__name__}, expected settings by name")
    return settings
