#!/usr/bin/env bash
# Compile caches of a real SGLang on a real GPU: what starts add, told by this plugin and by find -newer, side by side.
#
#   real_gpu.sh OUT defaults START [...]     cold, second and third start with the caches where SGLang puts them (about 7 minutes)
#   real_gpu.sh OUT kept START [...]         cold and second start with TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR in OUT (about 6)
#
# START [...] starts SGLang with torch.compile in the foreground on the port that stands in $PORT. Needs the plugin importable
# (PYTHONPATH or installed), httpx, msgspec, psutil, GNU find. Everything is written below OUT; no setting of the card is touched.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd); stage=$2; shift 2
here=$(cd "$(dirname "$0")" && pwd)
export PORT=${PORT:-30000} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export HOME=$out/home TMPDIR=$out/tmp USER=${USER:-root}
starts="cold second third"
mkdir -p "$HOME" "$TMPDIR"
if [ "$stage" = kept ]; then
  export HOME=$out/home-kept TMPDIR=$out/tmp-kept
  export TORCHINDUCTOR_CACHE_DIR=$out/kept/inductor TRITON_CACHE_DIR=$out/kept/triton
  mkdir -p "$HOME" "$TMPDIR" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR"
  starts="cold second"
fi
nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv 2>/dev/null
for start in $starts; do
  echo "=== $stage: $start start, $(date -u +%H:%M:%S)"
  stamp=$out/stamp-$stage-$start; touch "$stamp"; sleep 0.1
  setsid "$@" > "$out/$stage-$start.log" 2>&1 &
  server=$!
  python3 "$here/real_gpu.py" watch "$server" "$out" "$stage" "$start"; code=$?
  # by hand: every file newer than the stamp below everything that could hold a cache
  find "$out"/home* "$out"/tmp* "$out"/kept -type f -newer "$stamp" 2>/dev/null > "$out/newer-$stage-$start.txt"
  python3 "$here/real_gpu.py" compare "$out" "$stage" "$start" || echo "COUNTS DIFFER at the $start start"
  kill -TERM -- -"$server" 2>/dev/null
  for _ in $(seq 60); do kill -0 -- -"$server" 2>/dev/null || break; sleep 0.5; done
  kill -KILL -- -"$server" 2>/dev/null; wait "$server" 2>/dev/null
  PORT=$((PORT + 1)); export PORT
  [ $code -eq 0 ] || { echo "stopped at the $start start: exit $code"; tail -20 "$out/$stage-$start.log"; exit $code; }
done
python3 "$here/real_gpu.py" contents "$out" "$stage"
nvidia-smi --query-compute-apps=pid,used_memory --format=csv 2>/dev/null
