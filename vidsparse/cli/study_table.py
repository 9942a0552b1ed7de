"""The table of a study: a row for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.cli.messages import counted

if TYPE_CHECKING:
    from vidsparse.generation.intervals import Mean
    from vidsparse.generation.study import Row

# Measure -> its title, and the digits that are shown.
TITLES = {
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "flicker": ("flicker", 4),
    "lpips": ("LPIPS", 3),
}


def print_table(rows: Mapping[str, Row], out: Path, backend: str, failures: Mapping[tuple[str, str], str]) -> None:
    """Print what became of each setting, where its worst frame is, and what failed."""
    from rich.console import Console
    from rich.table import Table

    from vidsparse.generation.study import DENSE

    measures = [name for name in TITLES if any(name in row.measures for row in rows.values())]
    judged = "mean" in rows[DENSE].judge if DENSE in rows else False
    titles = ["setting", "videos", "seconds", "speedup", "density", *(TITLES[name][0] for name in measures)]
    caption = (
        f"dense attention: {backend}; seconds are medians of denoising; distances are from the dense video; "
        "± is half of a 95 % confidence interval of the mean"
    )
    table = Table(*titles, *(["judge"] if judged else []), caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for setting, row in rows.items():
        table.add_row(
            setting,
            str(row.videos),
            "" if row.seconds is None else f"{row.seconds.median:.2f}",
            "" if row.speedup is None or setting == DENSE else f"{row.speedup.median:.2f}x",
            "" if row.density is None else f"{row.density:.3f}",
            *(_with_interval(row.measures.get(name), TITLES[name][1], _identical(row, name)) for name in measures),
            *([_with_interval(row.judge.get("mean"), 2)] if judged else []),
        )
    console = Console(highlight=False)
    console.print(table)
    for setting, row in rows.items():
        if row.worst is not None and setting != "another seed":
            video, frame = row.worst
            strip = out / setting / f"{video}.png"
            print(f"worst frame of {setting}: {frame} of {video}; see {strip}")
    if failures:
        print(f"failed: {counted(len(failures), 'video')}")
        for (setting, video), reason in failures.items():
            print(f"  {setting}/{video}: {reason}")


def _identical(row: Row, measure: str) -> str:
    return "identical" if measure == "psnr" and row.identical else ""


def _with_interval(mean: Mean | None, digits: int, otherwise: str = "") -> str:
    """A mean and half of its confidence interval, such as "31.2 ± 0.8"."""
    if mean is None:
        return otherwise
    return f"{mean.mean:.{digits}f}" + ("" if mean.half is None else f" ± {mean.half:.{digits}f}")
