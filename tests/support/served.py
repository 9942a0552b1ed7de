"""`vidsparse ui` in a process of its own, as a user starts it: Gradio leaves event loops behind in its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from needs import free_port

ROOT = Path(__file__).parents[2]


@contextmanager
def served(folder: Path, *words: object) -> Iterator[tuple[str, Path]]:
    """A page that is served until the context ends with Ctrl-C.

    Args:
        folder: of temporary files.
        words: after `vidsparse ui`.

    Yields:
        Its address, and the file that stderr goes to.
    """
    said = folder / "stderr"
    environment = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    command = [
        sys.executable,
        "-m",
        "vidsparse",
        "ui",
        "--no-browser",
        "--port",
        free_port(),
        "--device",
        "cpu",
        *words,
    ]
    with said.open("w") as stderr:
        pipe: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=stderr, text=True)
        with subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment, **pipe) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                assert "shows the page until Ctrl-C" in line, said.read_text()
                yield line.split()[0], said
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(60)
    assert server.returncode == 0 and "Traceback" not in said.read_text(), said.read_text()
