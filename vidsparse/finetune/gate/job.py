"""A whole training of a gate: encode the clips, move the encoders away, let the frozen model teach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidsparse.finetune.checks import check_pipeline, training_device
from vidsparse.finetune.data.cache import encode
from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.finetune.families import task_for
from vidsparse.finetune.gate.training import GateTraining, gate_in, with_pattern
from vidsparse.finetune.process.accelerator import processes
from vidsparse.finetune.process.lock import locked
from vidsparse.finetune.process.stopping import stopping
from vidsparse.finetune.settings import Settings
from vidsparse.patterns import TopBlocks


def check_gate(pipe: Any, settings: Settings, buckets: Iterable[Bucket] = ()) -> None:
    """Refuse what cannot be trained, before videos are read. The pipeline does not change.

    Raises:
        ValueError: a pattern without a `LearnedGate`; or see `check_pipeline`.
        NotImplementedError: several processes; positions that differ from those of the model; or see `check_pipeline`.
    """
    gate = gate_in(settings.pattern)
    if (count := processes()) > 1:
        raise NotImplementedError(
            f"a gate is trained by one process, and here are {count}; start it without a launcher"
        )
    if settings.positions != "plain":
        raise NotImplementedError(f"positions={settings.positions!r}: a gate is trained with those of the model, plain")
    # The gate does not exist yet; what it begins as stands in its place.
    begun = TopBlocks(density=gate.density, threshold=gate.threshold, tile=gate.tile)
    check_pipeline(pipe, replace(settings, pattern=with_pattern(settings.pattern, begun)), buckets)


def train_gate(
    pipe: Any,
    clips: Sequence[Clip],
    settings: Settings,
    folder: str | Path,
    *,
    base: str,
    rows: int = 32,
    cache: str | Path | None = None,
    cpu: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int, float | None], None] = lambda task, done, total, loss: None,
) -> Path:
    """Train the gate of one transformer, which stays as it is, and write it.

        clips = drawn_clips(64, Bucket(33, 128, 128))
        settings = Settings(LearnedGate("runs/gate", density=0.2), steps=200, learning_rate=1e-3)
        train_gate(load_pipeline(), clips, settings, "runs/gate", base="shapes")

    Where the folder has checkpoints of the transformer, it resumes from the last one. Two experts are trained one after
    the other, into one folder.

    Args:
        pipe: a pipeline of `vidsparse.finetune.families.TASKS`, in the dtype that it computes in.
        clips: from `folder_clips` or `drawn_clips`.
        settings: `pattern` is the `LearnedGate` to train, in a `StepSchedule` or not; its density or threshold does
            not change what is learned, only the recall in the log. Of the rest count transformer, steps, batch,
            optimizer, the learning rate and its course, clip, the noise levels, caption_dropout, seed, log_every,
            save_every and keep.
        folder: receives `TRANSFORMER_gate.safetensors`, and in a folder named as the transformer `checkpoints` and
            `log.jsonl`: divergence, recall, and the recall of the untrained gate.
        base: name of the model, for the file.
        rows: query tiles of each layer and video that teach. Attention of as many tiles to all keys is computed once
            more for them.
        cache: folder of latents and embeddings; by default `folder/cache`.
        cpu: train on the CPU even if there is a GPU.
        say: called with messages for the user, one line each.
        progress: called with the task ("encoding" or "training"), what is done and the total, and the divergence.

    Returns:
        The file, for `LearnedGate`.

    Raises:
        ValueError, NotImplementedError: see `check_gate`.
        OSError: the disk is full; files written before are complete.
        RuntimeError: another process trains in the folder, or the divergence is not finite.
        Stopped: SIGINT or SIGTERM asked the training to stop; the step is finished and saved.
    """
    settings = settings.of_family(task_for(pipe))
    check_gate(pipe, settings, {clip.bucket for clip in clips})
    folder, device = Path(folder), training_device(cpu)
    folder.mkdir(parents=True, exist_ok=True)
    with stopping() as stop, locked(folder):
        store = Path(cache) if cache else folder / "cache"
        examples, skipped = encode(
            pipe, clips, store, progress=lambda done, total: progress("encoding", done, total, None), device=device
        )
        for video in skipped:
            say(f"{video.path} is left out: {video.reason}")
        training = GateTraining(pipe, examples, settings, folder, device, base, rows, stop, say)
        return training.train(lambda step, loss: progress("training", step, settings.steps, loss))
