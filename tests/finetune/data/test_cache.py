"""The clips of a fine-tuning encoded once and kept on disk."""

from __future__ import annotations

import copy
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from gloo import on_ranks
from quantised import needs, torchao_weights
from safetensors.torch import save_file
from small_videos import SMALL, leaves_pipes, write_video
from torch import distributed
from trained_families import CASES
from twins import ignores_warnings

from vidsparse.doctor import Twin
from vidsparse.finetune.data import tensor_file
from vidsparse.finetune.data.cache import Encoded, encode, read_ahead
from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.data.folder import folder_clips
from vidsparse.finetune.data.synthetic import drawn_clips
from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.objective import ExampleStream
from vidsparse.finetune.record.validation import Validation
from vidsparse.shapes.model import MAX_WORDS, build_vae, load_pipeline

pytestmark = leaves_pipes


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


def clip_of(seed: int, bucket: Bucket = SMALL) -> Clip:
    return drawn_clips(1, bucket, seed)[0]


def unreadable() -> torch.Tensor:
    raise ValueError("it is damaged")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_latents_decode_to_the_video_as_the_pipeline_decodes(pipe: Any, tmp_path: Path) -> None:
    clip = clip_of(0, Bucket(9, 64, 64))
    encoded, _ = encode(pipe, [clip], tmp_path)
    latents = encoded.latents(0)
    assert latents.shape == (8, 3, 16, 16)
    assert latents.dtype == torch.float32
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        video = pipe.vae.decode(latents[None] * std + mean).sample[0]
    assert -10 * torch.log10((video - clip.read()).square().mean() / 4) > 25


def test_texts_are_those_of_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    clip = clip_of(0)
    encoded, _ = encode(pipe, [clip], tmp_path)
    with torch.no_grad():
        said, empty = pipe.encode_prompt(clip.caption, max_sequence_length=MAX_WORDS)
    assert torch.equal(encoded.text(0), said[0])
    assert torch.equal(encoded.no_caption(0)[MAIN], empty[0])
    assert encoded.captions == [clip.caption]


def test_what_is_cached_is_not_encoded_again(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [clip_of(0), clip_of(1), clip_of(2, Bucket(9, 32, 16)), clip_of(3)]
    calls = []
    first, _ = encode(pipe, [*clips, replace(clips[0], caption="another")], tmp_path, lambda *n: calls.append(n))
    assert len(first) == 5
    assert calls == [(i, 10) for i in range(11)]
    assert torch.equal(first.latents(0), first.latents(4))
    assert not torch.equal(first.text(0), first.text(4))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr(Encoders, "encode_video", refuse)
    monkeypatch.setattr(Encoders, "encode_text", refuse)
    again, skipped = encode(pipe, [replace(clip, read=refuse) for clip in clips], tmp_path)
    assert skipped == []
    for index in range(4):
        assert torch.equal(again.latents(index), first.latents(index))
        assert torch.equal(again.text(index), first.text(index))


def test_another_clip_caption_size_or_model_is_another_entry(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, encoders = clip_of(0), Encoders(pipe)
    keys = [
        encoders.video_key(clip),
        encoders.video_key(clip_of(1)),
        encoders.video_key(replace(clip, bucket=Bucket(9, 32, 32))),
        encoders.text_key("a red circle"),
        encoders.text_key("a red square"),
    ]
    assert encoders.video_key(replace(clip, caption="another")) == keys[0]
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 16)
    keys.append(Encoders(pipe).text_key("a red circle"))
    monkeypatch.setattr(pipe.vae, "use_tiling", True)
    keys.append(Encoders(pipe).video_key(clip))
    assert len(set(keys)) == len(keys)


@ignores_warnings
@pytest.mark.parametrize(
    ("family", "part", "change", "key"),
    [
        ("cogvideox1.5", "transformer", {"patch_size_t": None}, "video"),
        ("wan-5b-image", "", {"expand_timesteps": False}, "video"),
        ("mochi", "", {"force_zeros_for_empty_prompt": True}, "text"),
        ("hunyuan-image", "transformer", {"image_condition_type": "token_replace"}, "text"),
        ("ltx2-image", "", {"text_encoder": ("transformers", "Gemma4ForConditionalGeneration")}, "video"),
    ],
)
def test_settings_that_change_what_is_encoded_are_in_the_key(
    family: str, part: str, change: dict[str, Any], key: str
) -> None:
    pipe = CASES[family].pipe()

    def keys() -> dict[str, str]:
        encoders = Encoders(pipe)
        return {"video": encoders.video_key(clip_of(0)), "text": encoders.text_key("")}

    before = keys()
    (getattr(pipe, part) if part else pipe).register_to_config(**change)
    assert [name for name, value in keys().items() if value != before[name]] == [key]


def test_what_is_all_zero_takes_no_place(tmp_path: Path) -> None:
    path = tmp_path / "latents-0.safetensors"
    whole = {
        "tensor": torch.zeros(2, 3),
        "image": torch.zeros(729, 1152, dtype=torch.bfloat16),
        "mask": torch.zeros(4, dtype=torch.bool),
        "one": torch.tensor([0.0, 1.0]),
        "none": torch.zeros(0, 4),
    }
    tensor_file.write(path, whole)
    assert path.stat().st_size < 1000 and tensor_file.shape(path) == (2, 3)
    found = tensor_file.read(path)
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    save_file(whole, path)  # as an earlier version wrote it
    assert all(torch.equal(tensor_file.read(path)[name], tensor) for name, tensor in whole.items())


@ignores_warnings
def test_an_example_reads_each_of_its_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["hunyuan15"]
    encoded, _ = encode(case.pipe(), drawn_clips(2, case.bucket), tmp_path)
    assert all(path.stat().st_size < 10_000 for path in tmp_path.glob("latents-*")), "no zeros for the image"
    read, reads = tensor_file.read, list[str]()
    monkeypatch.setattr(tensor_file, "read", lambda path: (reads.append(path.name), read(path))[1])
    stream = ExampleStream(encoded, 0, 1, 0, 1, 3.0, (0.0, 1.0), caption_dropout=0.5)
    for step in range(4):
        del reads[:]
        example = stream.draw(step, 0)
        assert sorted(name.split("-")[0] for name in reads) == ["latents", "text"]
        assert example.more.keys() == {"mask", "glyphs", "glyph_mask", "image"}
    del reads[:]
    Validation(encoded, (0.0, 1.0), 0).example(0, 0.5)
    assert len(reads) == 2


def test_a_quantised_weight_counts_as_the_tensors_inside_it() -> None:
    needs("torchao")
    model, other = (torchao_weights(Twin(WanTransformer3DModel)) for _ in range(2))
    assert fingerprint(model) == fingerprint(other)
    next(weight for weight in other.parameters() if hasattr(weight, "qdata")).qdata.add_(1)
    assert fingerprint(model) != fingerprint(other)


def test_a_fingerprint_is_of_weights_and_settings() -> None:
    def built(seed: int, **settings: Any) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_vae(**settings)

    vae = built(0)
    assert fingerprint(vae) == fingerprint(built(0))
    vae.register_to_config(_name_or_path="elsewhere")
    assert fingerprint(vae) == fingerprint(built(0))
    others = [built(1), built(0, std=[2.0] * 8), built(0).half()]
    assert len({fingerprint(v) for v in (vae, *others)}) == 4


@pytest.mark.parametrize("at", ["write_bytes", "replace"])
def test_a_run_killed_while_it_writes_leaves_nothing_half_there(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((Path, "write_bytes") if at == "write_bytes" else (os, "replace")), killed)
        encode(pipe, [clip_of(0)], tmp_path)
    assert files(tmp_path) == set()
    assert len(encode(pipe, [clip_of(0)], tmp_path)[0]) == 1


def test_what_dead_runs_left_is_removed_and_what_is_damaged_is_encoded_again(pipe: Any, tmp_path: Path) -> None:
    expected = encode(pipe, [clip_of(0)], tmp_path)[0].latents(0)
    complete = files(tmp_path)
    (path,) = tmp_path.glob("latents-*")
    path.write_bytes(path.read_bytes()[:-100])
    dead, living = tmp_path / ".latents-0.safetensors", tmp_path / ".latents-1.safetensors"
    for leftover in (dead, living):
        leftover.write_bytes(b"half")
    old = living.stat().st_mtime - 2 * tensor_file.STALE
    os.utime(dead, (old, old))
    assert torch.equal(encode(pipe, [clip_of(0)], tmp_path)[0].latents(0), expected)
    assert files(tmp_path) == complete | {living.name}


def test_a_full_disk_is_said_and_what_was_encoded_is_kept(pipe: Any, tmp_path: Path, full_disk: Any) -> None:
    small, large = clip_of(0), clip_of(1, Bucket(9, 64, 64))
    says = f"cannot write .*latents-.*{os.strerror(errno.EFBIG)}; earlier files are kept"
    with full_disk(), pytest.raises(OSError, match=says):
        encode(pipe, [small, large], tmp_path)
    assert sum(name.startswith("latents-") for name in files(tmp_path)) == 1
    assert len(encode(pipe, [small, large], tmp_path)[0]) == 2


def test_processes_share_the_work_and_see_all_of_it(pipe: Any, tmp_path: Path) -> None:
    clips = [clip_of(i) for i in range(3)]
    clips.insert(1, replace(clips[0], key="broken", read=unreadable, path=Path("broken.mp4")))
    read: dict[int, list[int]] = {0: [], 1: []}
    results: dict[int, Any] = {}
    barrier = threading.Barrier(2, timeout=60)

    def reading(rank: int, index: int) -> Callable[[], torch.Tensor]:
        def read_clip() -> torch.Tensor:
            read[rank].append(index)
            return clips[index].read()

        return read_clip

    # A process has models of its own; Wan's VAE keeps the frame before in itself.
    pipes = [pipe, type(pipe)(**{**pipe.components, "vae": copy.deepcopy(pipe.vae)})]

    def process(rank: int) -> None:
        mine = [replace(clip, read=reading(rank, i)) for i, clip in enumerate(clips)]
        results[rank] = encode(pipes[rank], mine, tmp_path, rank=rank, world=2, wait=lambda: (barrier.wait(), None)[1])

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {0: [0, 2], 1: [1, 3]}
    for encoded, skipped in results.values():
        assert encoded.captions == [clips[i].caption for i in (0, 2, 3)]
        assert [(s.path.name, s.reason) for s in skipped] == [("broken.mp4", "it is damaged")]


def share(data: Path, cache: Path) -> tuple[list[str], str]:
    """What this process decodes of a folder, and the hash of what all processes have encoded."""
    rank, read = distributed.get_rank(), list[str]()
    clips, _ = folder_clips(data, [(32, 32)], [5], cache=cache, rank=rank, world=2)

    def reading(clip: Clip) -> torch.Tensor:
        read.append(str(clip.path and clip.path.name))
        return clip.read()

    mine = [replace(clip, read=partial(reading, clip)) for clip in clips]
    encoded, _ = encode(load_pipeline(), mine, cache, rank=rank, world=2, wait=distributed.barrier)
    return read, encoded.fingerprint


def test_two_gloo_processes_decode_each_clip_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index in range(4):
        write_video(tmp_path / f"data/{index}.mp4", frames=5 + index)
        (tmp_path / f"data/{index}.txt").write_text("a white square standing still on a black background")
    (first, one), (second, other) = on_ranks(2, share, tmp_path / "data", tmp_path / "cache")
    assert (first, second) == (["0.mp4", "2.mp4"], ["1.mp4", "3.mp4"]) and one == other


def test_captions_and_repeats_are_examples_of_one_file(pipe: Any, tmp_path: Path) -> None:
    clip = clip_of(0)
    clips = [replace(clip, repeats=2), replace(clip, caption="a red circle", repeats=2), clip_of(1, Bucket(9, 32, 16))]
    encoded, _ = encode(pipe, clips, tmp_path)
    assert encoded.captions == [clip.caption] * 2 + ["a red circle"] * 2 + [clips[2].caption]
    assert len(list(tmp_path.glob("latents-*"))) == 2 and encoded.frames == 9


def test_a_broken_clip_takes_no_other_of_its_file_with_it(pipe: Any, tmp_path: Path) -> None:
    path = Path("take.mp4")
    good = replace(clip_of(0), path=path)
    broken = replace(clip_of(1, Bucket(9, 32, 32)), path=path, read=unreadable)
    encoded, skipped = encode(pipe, [good, broken, replace(broken, caption="another")], tmp_path)
    assert (len(encoded), encoded.frames, len(skipped)) == (1, 5, 1)


def test_the_next_clips_are_decoded_while_one_is_encoded(pipe: Any, tmp_path: Path) -> None:
    started, ready = list[int](), threading.Event()

    def reading(index: int) -> torch.Tensor:
        started.append(index)
        if index == 1:
            ready.set()  # only if it is read beside the first
        assert index != 0 or ready.wait(60)
        return clip_of(index).read()

    clips = [replace(clip_of(index), read=partial(reading, index)) for index in range(6)]
    ahead = read_ahead(clips)
    assert torch.equal(next(ahead), clip_of(0).read())  # type: ignore[arg-type]
    assert len(started) < 6, "no more than memory is there for"
    assert [torch.equal(video, clip_of(i).read()) for i, video in enumerate(ahead, 1)] == [True] * 5  # type: ignore[arg-type]


def test_a_video_that_breaks_while_it_is_read_is_left_out(pipe: Any, tmp_path: Path) -> None:
    good = clip_of(0)
    bad = replace(good, key="broken", read=unreadable, path=Path("broken.mp4"))
    assert encode(pipe, [bad, good], tmp_path)[0].captions == [good.caption]
    with pytest.raises(ValueError, match=r"none of the 1 videos can be read; broken.mp4: it is damaged"):
        encode(pipe, [bad], tmp_path)
    mended, skipped = encode(pipe, [replace(bad, read=good.read)], tmp_path)
    assert (len(mended), skipped) == (1, [])
    with pytest.raises(ValueError, match="it is damaged"):  # a drawn clip has no file to blame
        encode(pipe, [replace(good, key="drawn", read=unreadable)], tmp_path)


def test_what_cannot_be_encoded_is_refused_before_anything_is(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AllegroPipeline:
        pass

    with pytest.raises(NotImplementedError, match="AllegroPipeline cannot be trained"):
        encode(AllegroPipeline(), [clip_of(0)], tmp_path / "cache")
    with pytest.raises(ValueError, match="no clips"):
        encode(pipe, [], tmp_path / "cache")
    with pytest.raises(ValueError, match="use 5 or 9"):
        encode(pipe, [clip_of(0), clip_of(0, Bucket(6, 32, 32))], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(pipe.vae, "encode", _of_nan)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        encode(pipe, [clip_of(0)], tmp_path / "cache")


def _of_nan(video: torch.Tensor) -> Any:
    from types import SimpleNamespace

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.full((1, 16, 2, 8, 8), float("nan"))))


def test_examples_outlive_the_encoders(pipe: Any, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a white square standing still on a black background")
    clips, _ = folder_clips(tmp_path, [(32, 32)], [5])
    encoded: Encoded = encode(pipe, clips, tmp_path / "cache")[0]
    assert not [v for v in vars(encoded).values() if isinstance(v, torch.nn.Module)]
    assert encoded.latents(0).isfinite().all()
    assert encoded.text(0).shape == (MAX_WORDS, 64)
