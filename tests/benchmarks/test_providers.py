"""The comparison with kernels of other packages, without a GPU: what runs is timed, what cannot says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/providers.py"


def test_what_runs_is_timed_and_what_refuses_says_why(tmp_path: Path) -> None:
    out = tmp_path / "providers.json"
    given = ["--impl", "cpu", "cudnn", "reference", "--density", "0.3", "--device", "cpu", "--out", str(out)]
    size = ["--view", "3", "16", "16", "--heads", "1", "--head-dim", "32"]
    subprocess.run([sys.executable, str(SCRIPT), *given, *size], check=True, capture_output=True, timeout=300)
    rows = {row["impl"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["cpu", "cudnn", "reference"]
    assert "CUDA" in rows["cudnn"]["refused"] and "R" not in rows["cudnn"]
    for impl in ("cpu", "reference"):
        assert "refused" not in rows[impl]
        assert min(rows[impl][key] for key in ("seconds", "seconds_with_gradients")) > 0
