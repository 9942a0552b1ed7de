"""What is worth a try on Hopper, by head_dim and tile, in the order of benchmarks/model.py within each kernel.

Launches with one stage wait for each box, which the model does not see; they are here where four programs share a
multiprocessor.
"""

from __future__ import annotations

from on_gpu.launches import parse
from on_gpu.tuning import Candidate

LAUNCHES = """
forward,128,128        128/8/3      64/8/2       128/8/2      gluon/128/2  gluon/64/4  gluon/128/2/turns
query_gradient,128,128 128/8/2      64/8/2       32/8/2/128
key_gradient,128,128   64/8/3       32/8/2       32/8/3
forward,128,64         64/4/3       64/4/2/168   64/4/1/168   64/4/1/128
query_gradient,128,64  64/4/2/168   32/4/2/168   32/4/3
key_gradient,128,64    32/4/2       32/4/3       64/4/3
forward,64,128         128/8/3/128  64/8/2       64/8/3       gluon/128/4  gluon/128/2
query_gradient,64,128  64/8/3       64/8/2/128   128/8/2
key_gradient,64,128    32/8/2/128   64/8/3       64/8/2/128
forward,64,64          64/4/2       64/4/3/128   64/4/3/168   64/4/1
query_gradient,64,64   64/4/3/168   64/4/3       64/4/2/128
key_gradient,64,64     64/4/2       64/4/3       64/4/2/168
"""

# Another kernel that does the work of one of ours is a candidate too, and stands with those of its head_dim and tile.
CANDIDATES: tuple[Candidate, ...] = tuple(
    parse(f"{of},{launch}") for of, *launches in map(str.split, LAUNCHES.split("\n")[1:-1]) for launch in launches
)
