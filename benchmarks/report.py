"""The catalogue's table and plot: quality against the time that it costs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vidsparse.atomic import replacing


def summaries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name: means over the prompts and seeds that it shares with dense, best PSNR first."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["name"]].append(row)
    dense = {(row["prompt"], row["seed"]): row for row in grouped["dense"]}
    found = []
    for name, videos in grouped.items():
        base = [dense[video["prompt"], video["seed"]] for video in videos]
        fine, coarse = (sum(row[key] for row in videos) for key in ("seconds", "coarse_seconds"))
        dense_fine = sum(row["seconds"] for row in base)
        means = {
            key: sum(row[key] for row in videos) / len(videos)
            for key in ("token_density", "ssim", "judge", "psnr")
            if all(row[key] is not None for row in videos)
        }
        faster = {"faster": dense_fine / fine, "denoising": (dense_fine + coarse) / (fine + coarse)}
        found.append({"name": name, "videos": len(videos)} | faster | means)
    return sorted(found, key=lambda row: row.get("psnr", 1000.0), reverse=True)


def write_report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write PATH.md and PATH.png."""
    found = summaries(rows)
    lines = [
        "| | videos | density of token pairs | PSNR | SSIM | judge | expert for low noise | denoising |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        psnr = f"{row['psnr']:.1f} dB" if "psnr" in row else ""
        judge = f"{row['judge']:.2f}" if "judge" in row else ""
        lines.append(
            f"| {row['name']} | {row['videos']} | {row['token_density']:.2f} | {psnr} | {row['ssim']:.3f} | "
            f"{judge} | {row['faster']:.2f}x | {row['denoising']:.2f}x |"
        )
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(12, 0.26 * len(found) + 2), layout="constrained")
    for axis, key, label in zip(figure.subplots(1, 2), ("psnr", "judge"), ("PSNR to dense, dB", "judge"), strict=True):
        _plot(axis, [row for row in found if key in row], key)
        axis.set(xlabel="denoising, times faster than dense", ylabel=label)
    with replacing(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=110)


def _plot(axis: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Draw a point for each row, and the names in a column at the right: beside the points they would overlap."""
    rows = sorted(rows, key=lambda row: row[key], reverse=True)
    for number, row in enumerate(rows):
        marker, colour = _style(row["name"])
        axis.plot(row["denoising"], row[key], marker, color=colour, markersize=8)
        axis.annotate(
            row["name"],
            (row["denoising"], row[key]),
            xytext=(1.03, 1 - (number + 0.5) / len(rows)),
            textcoords="axes fraction",
            fontsize=8,
            color=colour,
            verticalalignment="center",
            arrowprops=dict(arrowstyle="-", color=colour, alpha=0.3, relpos=(0, 0.5)),
        )
    axis.grid(alpha=0.3)


def _style(name: str) -> tuple[str, str]:
    """Marker and colour: what is tuned, corrected, a pattern alone."""
    if name.startswith("profile"):
        return "*", "C3"
    return ("s", "C1") if "+" in name else ("o", "black" if name == "dense" else "C0")
