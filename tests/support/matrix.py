"""What composes with which family: the lists that tests take their cases from, and the table in the documentation."""

from __future__ import annotations

from pathlib import Path

from vidsparse.doctor.support import title
from vidsparse_pipelines import ADAPTERS

FAMILIES = Path(__file__).parents[2] / "docs/families.md"

# Caches. Refused, with a word of the reason; "" stands for all caches.
CACHES = ("FirstBlockCache", "MagCache", "SeaCache", "TaylorSeerCache", "PyramidAttentionBroadcast")
REFUSED_CACHES = {
    ("AnyFlowFARTransformer3DModel", ""): "no CacheMixin",
    ("ConsisIDTransformer3DModel", ""): "no CacheMixin",
    ("CosmosTransformer3DModel", ""): "no CacheMixin",
    ("LTX2VideoTransformer3DModel", "MagCache"): "sound would miss them",
    ("WanVACETransformer3DModel", "FirstBlockCache"): "added twice",
    ("WanVACETransformer3DModel", "MagCache"): "added twice",
    ("WanVACETransformer3DModel", "SeaCache"): "added twice",
}
SEA_CACHE = ("WanTransformer3DModel", "Cosmos3OmniTransformer")

# Several GPUs: those that cannot be divided; the reasons stand in docs/composing.md.
NO_ULYSSES = (
    "AllegroTransformer3DModel",
    "AnyFlowFARTransformer3DModel",
    "Cosmos3OmniTransformer",
    "LTX2VideoTransformer3DModel",
)

# Guiders: those for which their hooks fail in diffusers, dense as well.
NO_GUIDERS = ("Cosmos3OmniTransformer",)


def refused_cache(name: str, cache: str) -> str | None:
    """A word of the reason why a family refuses a cache, or None."""
    reason = REFUSED_CACHES.get((name, cache)) or REFUSED_CACHES.get((name, ""))
    return reason or (None if cache != "SeaCache" or name in SEA_CACHE else "does not know where")


def matrix() -> str:
    """The table in Markdown: a row for each family, sorted as in the table of families."""
    columns = ("family", "caches", "several GPUs", "`torch.compile`", "guiders", "quantised", "offload", "LoRA")
    rows = [columns, ("---",) * len(columns), *(_row(name) for name in sorted(ADAPTERS, key=title))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str) -> tuple[str, ...]:
    served = sum(refused_cache(name, cache) is None for cache in CACHES)
    checked = next(row for row in FAMILIES.read_text().splitlines() if f"`{name}`" in row)
    return (
        title(name),
        f"{served} of {len(CACHES)}" if served else "no",
        "no" if name in NO_ULYSSES else "yes",
        "yes",  # pipelines/test_graphs.py: every family
        "no" if name in NO_GUIDERS else "yes",
        "yes",  # runtime/test_quantised.py: every family, with torchao
        "no" if "offload" in checked else "yes",
        "no" if "LoRA" in checked else "yes",
    )
