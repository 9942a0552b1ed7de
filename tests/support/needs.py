"""Marks of tests that need what may not be there."""

from __future__ import annotations

import pytest

from vidsparse.shapes import model as shapes

needs_weights = pytest.mark.skipif(
    not (shapes.FOLDER / "model_index.json").is_file(), reason="the shapes weights are not there"
)
