"""Caches of diffusers beside sparse attention: enabled where they work, refused with the reason where they do not."""

from vidsparse.caches.enable import enable_cache as enable_cache
