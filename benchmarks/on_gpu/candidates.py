"""Launches that are worth a try on Hopper."""

from __future__ import annotations

from on_gpu.launches import Launch
from on_gpu.tuning import Candidate

_LAUNCHES = """
forward,128,128,64/8/2/128
forward,128,128,128/8/2
query_gradient,128,128,128/8/2
key_gradient,128,128,64/8/2
"""

CANDIDATES: tuple[Candidate, ...] = tuple(map(Launch.parse, _LAUNCHES.split()))
