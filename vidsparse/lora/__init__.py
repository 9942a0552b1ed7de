"""LoRA files, and the recipe that a LoRA was trained with."""

from vidsparse.lora.files import save_lora
from vidsparse.lora.load import load_lora, unload_lora
from vidsparse.lora.recipe import LoraRecipe

__all__ = ["LoraRecipe", "load_lora", "save_lora", "unload_lora"]
