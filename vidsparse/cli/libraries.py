"""What other libraries say while a command runs: nothing, unless the command is verbose."""

from __future__ import annotations

import logging
import os
import warnings

# Libraries read these when they are imported, which is later: their bars and notes would interrupt ours.
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
LOGGERS = "torchao", "torch.utils._pytree"  # a quantiser that is merely installed warns when it is imported
_silenced: set[str] = set()


def silence() -> None:
    """Let libraries that are imported from now on say errors alone, unless the environment says how much they say."""
    for name in QUIET.keys() - os.environ.keys():
        os.environ[name] = QUIET[name]
        _silenced.add(name)
    for logger in LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # float32 norms under autocast


def unsilence() -> None:
    """Take back `silence`, for libraries that are imported from now on."""
    for name in _silenced - {"TOKENIZERS_PARALLELISM"}:  # which warns of processes that we do not fork
        os.environ.pop(name, None)
    _silenced.clear()
    for logger in LOGGERS:
        logging.getLogger(logger).setLevel(logging.NOTSET)
    warnings.simplefilter("default")
