"""Pictures of block maps and of what ran, for `vidsparse.plot`, notebooks, `vidsparse inspect` and the gallery."""
