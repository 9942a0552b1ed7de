#!/bin/bash
# What a quarter of an hour on a GPU is for, from the project's root; benchmarks/GPU.md says what to read in it.
#   bash benchmarks/gpu.sh first OUT               # 540 seconds at most: right? how fast? which launches? the tests
#   bash benchmarks/gpu.sh second OUT TUNE.json    # 240 seconds at most: the same with those launches, and ncu
# Needs Python with torch and triton, and pytest for the tests: no installation. Everything is in OUT as soon as it is known.
set -u
cd "$(dirname "$0")/.."
mode=${1:?first or second} out=$(mkdir -p "${2:?folder for results}" && cd "$2" && pwd) tune=${3:-}
case $mode in first) limit=540 ;; second) limit=240 ;; *) echo "first or second, not $mode" >&2; exit 2 ;; esac
limit=${LIMIT:-$limit}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD:$PWD/kernels:$PWD/pipelines"
python=${PYTHON:-python3}

# part NAME SECONDS COMMAND...: no part takes the time of those after it, or ends them when it fails.
part() {
  local name=$1 most=$2 left=$((limit - SECONDS - 5)) code
  shift 2
  if ((left < 10)); then echo "== $name: no time left"; return; fi
  ((most < left)) || most=$left
  echo "== $name at $SECONDS s, $most s at most"
  timeout --kill-after=5 "$most" "$@" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  echo "== $name: exit $code at $SECONDS s"
}

if [ "$mode" = first ]; then
  part quick 250 "$python" benchmarks/gpu.py --quick --out "$out"
  part tune 165 "$python" benchmarks/gpu_tune.py --seconds 120 --out "$out/tune.json"
  many=$(timeout 15 "$python" -c 'import xdist; print("-n 10")' 2>/dev/null)
  # shellcheck disable=SC2086
  part tests 150 "$python" -m pytest -q $many -p no:cacheprovider -W default --color=no \
    tests/kernels/gpu/test_{forward_backward,operator,bound,lists,configs}.py tests/kernels/selection
else
  part again 150 "$python" benchmarks/gpu.py --quick --out "$out" ${tune:+--launches "$tune"}
  for kernel in forward_kernel query_gradient_kernel key_gradient_kernel; do
    part "ncu_$kernel" 40 ncu --clock-control none --set detailed -k "$kernel" -c 1 \
      "$python" benchmarks/gpu_call.py --problem 75k ${tune:+--launches "$tune"}
  done
fi
echo "== done at $SECONDS s"
