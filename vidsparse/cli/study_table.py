"""The tables of a study: what each setting costs, and how far it is from the dense videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.cli.messages import counted

if TYPE_CHECKING:
    from vidsparse.generation.intervals import Mean
    from vidsparse.generation.study import Row

# Measure -> its title, and the digits that are shown.
MEASURES = {
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "flicker": ("flicker", 4),
    "lpips": ("LPIPS", 3),
}


def print_tables(rows: Mapping[str, Row], out: Path, backend: str, failures: Mapping[tuple[str, str], str]) -> None:
    """Print what each setting costs, how far it is from dense, where its worst frame is, and what failed."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_costs(rows, backend))
    if any(row.measures for row in rows.values()):
        console.print(_distances(rows))
    for setting, row in rows.items():
        if row.worst is not None and row.seconds is not None:
            video, frame = row.worst
            print(f"worst frame of {setting}: {frame}, marked in {out / setting / video}.png")
    if failures:
        print(f"failed: {counted(len(failures), 'video')}")
        for (setting, video), reason in failures.items():
            print(f"  {setting}/{video}: {reason}")


def _costs(rows: Mapping[str, Row], backend: str) -> object:
    from vidsparse.generation.study import DENSE

    judged = any(row.judge for row in rows.values())
    titles = "setting", "videos", "seconds", "speedup", "density", *(["judge"] if judged else [])
    caption = f"dense attention: {backend}; seconds of denoising and speedups are medians; the judge's score is a mean"
    return _table(
        titles,
        {
            setting: [
                str(row.videos),
                f"{row.seconds.median:.2f} ({row.seconds.low:.2f}-{row.seconds.high:.2f})",
                "" if row.speedup is None or setting == DENSE else f"{row.speedup.median:.2f}x",
                f"{row.density:.3f}",
                *([mean_text(row.judge.get("mean"), 2)] if judged else []),
            ]
            for setting, row in rows.items()
            if row.seconds is not None
        },
        caption if judged else caption.rpartition(";")[0],
    )


def _distances(rows: Mapping[str, Row]) -> object:
    measured = [name for name in MEASURES if any(name in row.measures for row in rows.values())]
    several = any(mean.half is not None for row in rows.values() for mean in row.measures.values())
    identical = {setting: row.identical for setting, row in rows.items() if row.identical}
    parts = [
        "distance from the dense video" + (", a mean and half of its 95 % confidence interval" if several else ""),
        *(f"{number} of {setting} identical to dense, not in its PSNR" for setting, number in identical.items()),
    ]
    return _table(
        ["setting", *(MEASURES[name][0] for name in measured)],
        {
            setting: [mean_text(row.measures.get(name), MEASURES[name][1]) for name in measured]
            for setting, row in rows.items()
            if row.measures
        },
        "; ".join(parts),
    )


def _table(titles: list[str] | tuple[str, ...], rows: Mapping[str, list[str]], caption: str) -> object:
    from rich.table import Table

    table = Table(*titles, caption=caption)
    table.columns[0].overflow = "fold"  # a name is never cut short
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for setting, values in rows.items():
        table.add_row(setting.replace("[", r"\["), *values)
    return table


def mean_text(mean: Mean | None, digits: int) -> str:
    """A mean and half of its confidence interval, such as "31.2 ± 0.8"; "" without one."""
    if mean is None:
        return ""
    return f"{mean.mean:.{digits}f}" + ("" if mean.half is None else f" ± {mean.half:.{digits}f}")
