"""Makes videos of text in a folder, slowly: in a test, or as a program that a test kills.

python slow_videos.py FOLDER SECONDS NAME...    # prints the names of those that it has made
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vidsparse.atomic import replacing
from vidsparse.generation.batch import Folder

TEXT = "{}"


def write(folder: Folder, name: str, pause: float = 0.0) -> None:
    """Write a video and a report in two pieces, with a pause after each."""
    for path in (folder.video(name), folder.report(name)):
        with replacing(path) as temporary, temporary.open("w") as file:
            for piece in TEXT:
                file.write(piece)
                file.flush()
                time.sleep(pause)


def make_all(folder: Folder, names: list[str], pause: float = 0.0) -> list[str]:
    """Make the videos as the command does; returns those that were made here."""
    made: list[str] = []

    def make(name: str) -> None:
        write(folder, name, pause)
        made.append(name)

    def failed(name: str, error: Exception) -> None:
        raise error

    folder.start(names)
    folder.make_all(names, make, failed)
    return made


if __name__ == "__main__":
    print(*make_all(Folder(Path(sys.argv[1])), sys.argv[3:], float(sys.argv[2])))
