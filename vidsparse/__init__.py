"""Sparse attention for the video diffusion transformers of Hugging Face diffusers."""

from importlib.metadata import version

import lazy_loader

# Names load when they are used, so that the command line answers --help without torch; __init__.pyi lists them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("vidsparse")
