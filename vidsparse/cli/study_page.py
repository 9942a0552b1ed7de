"""The page of a study: the worst, the median and the best of its videos, and all settings in one plot."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vidsparse.cli.messages import counted
from vidsparse.cli.page import SPLIT_NOTE, copied, facts
from vidsparse.cli.study_table import MEASURES, mean_text
from vidsparse.cli.words import given_command
from vidsparse.generation.study import ANOTHER_SEED, DENSE
from vidsparse.webpage.page import Clip, Page, Scene, Setting, memory_text, time_split

if TYPE_CHECKING:
    from vidsparse.cli.study_run import StudyRun
    from vidsparse.generation.study import Row

MOST_CLIPS = 8  # of a prompt and seed
FASTER = 1.1  # times as fast as dense attention: less is not worth a headline
MOST_BYTES = 100_000_000  # of all videos in a page: browsers grow slow with more
RANKS = "worst", "median", "best"


def study_page(run: StudyRun, rows: Mapping[str, Row], summary: Mapping[str, Any]) -> Page:
    """The page of a study.

    Args:
        run: what was made. rows: see `vidsparse.generation.study.summarise`. summary: what `summary.json` has.
    """
    settings = tuple(_setting(run, name, row) for name, row in rows.items() if name in run.requests)
    scenes = _scenes(run, [one.name for one in settings])
    one = next(iter(run.requests[DENSE].values()))
    shown, made = sum(len(scene.clips) for scene in scenes), len(run.made)
    others = "" if shown == made else f" All are in the folder {run.asked.out}."
    note = (
        f"{shown} of {counted(made, 'video')} are in this file, at most {MOST_CLIPS} of one prompt and seed and "
        f"{MOST_BYTES // 10**6} MB in all: those with the lowest, the median and the highest mean PSNR over the "
        f"settings.{others}"
    )
    apart = rows[ANOTHER_SEED].measures.get("psnr") if ANOTHER_SEED in rows else None
    first = next(iter(run.made.values()))
    known = facts(one, summary, first.get("peak_bytes"))
    known |= {"dense attention": str(run.backend), "prompts": str(run.asked.prompts), "seeds": str(run.asked.seeds)}
    return Page(
        title=f"Study of {one.model}: {counted(len(settings), 'setting')}, {counted(made, 'video')}",
        headlines=_headlines(rows, run.rivals),
        scenes=scenes,
        settings=settings,
        facts=known,
        command=given_command(),
        report=summary,
        scenes_note=note,
        split_note=f"{SPLIT_NOTE} Means over the videos of a setting.",
        another_seed=None if apart is None else apart.mean,
    )


def _headlines(rows: Mapping[str, Row], rivals: set[str]) -> dict[str, str]:
    """The setting with the highest PSNR of those that are `FASTER` than dense."""
    ours = {name: row for name, row in rows.items() if name not in rivals | {DENSE} and "psnr" in row.measures}
    faster = {name: row for name, row in ours.items() if row.speedup is not None and row.speedup.median >= FASTER}
    if not faster:
        return {f"settings are {FASTER} times as fast as dense": f"0 of {len([r for r in ours.values() if r.seconds])}"}
    best = max(faster, key=lambda name: faster[name].measures["psnr"].mean)
    speedup, psnr = faster[best].speedup, faster[best].measures["psnr"].mean
    assert speedup is not None
    return {
        f"nearest to dense of the settings that are {FASTER} times as fast": best,
        "its speed-up": f"{speedup.median:.2f}x",
        "its PSNR to dense": f"{psnr:.1f} dB",
    }


def _setting(run: StudyRun, name: str, row: Row) -> Setting:
    leader = next(iter(run.requests[name].values()))
    kind = "dense" if name == DENSE else "fewer steps" if name in run.rivals else "sparse"
    own = [made for (setting, _), made in run.made.items() if setting == name]
    figures = {"videos": str(row.videos)}
    if row.seconds is not None:
        figures["seconds"] = f"{row.seconds.median:.2f} ({row.seconds.low:.2f}-{row.seconds.high:.2f})"
    if row.speedup is not None and name != DENSE:
        figures["speed-up"] = f"{row.speedup.median:.2f}x"
    if row.density is not None:
        figures["density"] = f"{row.density:.3f}"
    figures |= {MEASURES[measure][0]: mean_text(mean, MEASURES[measure][1]) for measure, mean in row.measures.items()}
    figures |= {"identical": str(row.identical)} if row.identical else {}
    figures |= {"judge": mean_text(row.judge["mean"], 2)} if "mean" in row.judge else {}
    peaks = [made["peak_bytes"] for made in own if made.get("peak_bytes") is not None]
    figures |= {"peak memory": memory_text(max(peaks))} if peaks else {}
    psnr, seconds = row.measures.get("psnr"), row.seconds
    correction = run.corrections.get(name) or (leader.build_correction() if kind == "sparse" else None)
    return Setting(
        name,
        kind,
        figures,
        *copied(leader, leader.build_pattern(), correction),
        split=_mean_split([made["seconds"] for made in own]),
        attention=_attention(run, name) if kind == "sparse" else None,
        seconds=None if seconds is None else (seconds.median, seconds.low, seconds.high),
        psnr=None if psnr is None else (psnr.mean, psnr.half),
    )


def _mean_split(seconds: list[Mapping[str, float | None]]) -> dict[str, float]:
    """Of videos with all clocks; a study of an earlier version may have some without."""
    names = "total", "denoising", "attention", "choosing"
    whole = [one for one in seconds if all(one.get(name) is not None for name in names)]
    if not whole:
        return {}
    total, denoising, attention, choosing = (fmean(float(one[name] or 0) for one in whole) for name in names)
    return time_split(total, denoising, attention, choosing)


def _attention(run: StudyRun, setting: str) -> Mapping[str, Any] | None:
    """What ran in the first video of a setting."""
    name = next(video for s, video in run.made if s == setting)
    report = run.folders[setting].read_report(name)
    found: Mapping[str, Any] | None = None if report is None else report["attention"]
    return found


def _scenes(run: StudyRun, settings: list[str]) -> tuple[Scene, ...]:
    """Videos of some prompts and seeds, within `MOST_CLIPS` and `MOST_BYTES`; the worst first."""
    ours = [name for name in settings if name != DENSE and name not in run.rivals]
    psnr = {
        name: fmean(_psnr(run.made[setting, name]) for setting in ours if (setting, name) in run.made)
        for name in run.requests[DENSE]
        if (DENSE, name) in run.made and any((setting, name) in run.made for setting in ours)
    }
    left, found = MOST_BYTES, dict[int, Scene]()
    ranked = _ranked(psnr)
    for place in sorted(range(len(ranked)), key=lambda place: (place == 1 and len(ranked) == 3, place)):
        rank, name = ranked[place]
        clips: list[Clip] = []
        request = run.requests[DENSE][name]
        for setting in [s for s in settings if (s, name) in run.made][:MOST_CLIPS]:
            video = run.folders[setting].video(name)
            size = video.stat().st_size
            if size > left and not (len(clips) < 2 and not found):  # of the worst, two are there whatever their size
                continue
            left -= size
            clips.append(_clip(run, setting, name))
        if len(clips) > 1 and clips[0].setting == DENSE:
            text = f"{request.prompt} (seed {request.seed})"
            found[place] = Scene(f"{rank}: {name}" if rank else name, text, request.frame_rate, tuple(clips))
    return tuple(found[place] for place in sorted(found))


def _ranked(psnr: Mapping[str, float]) -> list[tuple[str, str]]:
    """The worst, the median and the best of all, with their ranks."""
    names = sorted(psnr, key=psnr.__getitem__)
    if len(names) < 2:
        return [("", name) for name in names]
    if len(names) == 2:
        return list(zip((RANKS[0], RANKS[2]), names, strict=True))
    return list(zip(RANKS, (names[0], names[(len(names) - 1) // 2], names[-1]), strict=True))


def _psnr(made: Mapping[str, Any]) -> float:
    found = made["difference"]["psnr"]
    return float("inf") if found is None else float(found)


def _clip(run: StudyRun, setting: str, name: str) -> Clip:
    file, apart = run.folders[setting].video(name), run.made[setting, name]["difference"]
    if apart is None:  # the dense video is as long as those that were compared with it
        others = (made["difference"] for (_, video), made in run.made.items() if video == name)
        return Clip(setting, file, next(len(other["frame_psnr"]) for other in others if other))
    psnr, ssim = tuple(apart["frame_psnr"]), tuple(apart["frame_ssim"])
    return Clip(setting, file, len(psnr), psnr, ssim, apart["worst_frame"])
