"""What is in the files of a training, looked at once by one of its processes and remembered for all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vidsparse.atomic import replacing
from vidsparse.finetune.data import pictures
from vidsparse.finetune.data.listing import ANIMATIONS, IMAGES, MEDIA
from vidsparse.finetune.data.pictures import Pictures
from vidsparse.generation import video_file
from vidsparse.generation.video_file import Footage

READER = "2"  # changes when the frames that are read from a file do
BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A video, an animation, a folder of frames or an image, as it was found.

    Attributes:
        path: of it.
        content: hash of its bytes.
        seen: what it holds.
    """

    path: Path
    content: str
    seen: Footage | Pictures

    def read(self, frames: Sequence[int], height: int, width: int) -> torch.Tensor:
        """Stored frames at a size: float32 [3, frames, height, width] in [-1, 1].

        Args:
            frames: indices, ascending; one may come several times.
            height, width: in pixels.

        Raises:
            ValueError: some cannot be decoded.
        """
        stored = sorted(set(frames))
        if isinstance(self.seen, Footage):
            decoded = video_file.read(self.path, self.seen, stored, height, width)
        else:
            decoded = pictures.read(self.path, self.seen, stored, height, width)
        place = {frame: index for index, frame in enumerate(stored)}
        read = torch.stack([torch.from_numpy(frame.copy()) for frame in decoded])
        if len(stored) != len(frames):
            read = read[[place[frame] for frame in frames]]
        return (read.permute(3, 0, 1, 2) / 127.5).sub_(1)


def look_at_all(
    paths: Sequence[Path],
    cache: Path | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Path, Source | str]:
    """Look at files, several at a time. With a cache, what has not changed is not read again.

    Args:
        paths: videos, animations, images and folders of frames.
        cache: folder that remembers; trainings may share it, even at the same time. None: nothing is remembered.
        rank, world: each process looks at `paths[rank::world]` first and then at what no other has looked at yet.
        progress: called with the number of files that this process knows, and of all.

    Returns:
        What was found at each path, or the reason why it cannot be used.
    """
    mine = list(paths[rank::world])
    # From the end, because the others began at the beginning.
    order = [*mine, *reversed([path for path in paths if path not in {*mine}])]
    found = dict[Path, Source | str]()
    workers = max(1, (os.cpu_count() or 1) // world) if world > 1 else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for done, (path, source) in enumerate(zip(order, pool.map(lambda p: _look(p, cache), order), strict=True), 1):
            found[path] = source
            progress(done, len(order))
    return {path: found[path] for path in paths}


def forget_older(cache: Path) -> bool:
    """Remove what an earlier version of vidsparse remembered of videos that it read in another way; whether it did."""
    older = list(cache.glob("look-*.safetensors"))
    for path in older:
        path.unlink(missing_ok=True)
    return bool(older)


def _look(path: Path, cache: Path | None) -> Source | str:
    try:
        files = pictures.frames_of(path) if path.is_dir() else [path]
        states = [(str(file.resolve()), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
        record = None if cache is None else cache / f"seen-{_hash(repr((READER, states)).encode())}.json"
        if record is not None and (known := _recall(record)) is not None:
            return Source(path, *known)
        content = _hash(*(block for file in files for block in _blocks(file)))
        found: Footage | Pictures = video_file.look(path) if _is_video(path) else pictures.look(path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as temporary:
            text = json.dumps({"content": content, type(found).__name__: asdict(found)})
            temporary.write_text(text, encoding="utf-8")
    return Source(path, content, found)


def _is_video(path: Path) -> bool:
    """Whether ffmpeg reads a file, rather than Pillow.

    Raises:
        ValueError: neither does.
    """
    end = path.suffix.lower()
    if not path.is_dir() and end not in MEDIA:
        raise ValueError(f"its ending {end} is not that of a video or an image" if end else "its name has no ending")
    return not (path.is_dir() or end in IMAGES or end in ANIMATIONS)


def _recall(record: Path) -> tuple[str, Footage | Pictures] | None:
    """What a record says; None without one, or where it is damaged."""
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
        cls = Footage if "Footage" in data else Pictures
        fields = data[cls.__name__]
        return data["content"], cls(**{**fields, "times": tuple(fields["times"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _blocks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _hash(*blocks: bytes) -> str:
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return found.hexdigest()
