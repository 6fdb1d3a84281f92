#!/usr/bin/env bash
# serve.sh FOLDER PORT [SGLang flags]: a real SGLang on the CPU with the tests' model, in the foreground on 127.0.0.1; SIGTERM stops it.
# FOLDER is what install.sh made. The port opens after about 17 s, /health answers 200 about 2 s later.
#
# With --enable-torch-compile set SGLANG_CPU_COMPILE_FIX=1 as well (shim/sitecustomize.py tells why), and add --torch-compile-max-bs 4.
# HOME moves the model's caches; without TORCHINDUCTOR_CACHE_DIR they are in ~/.cache/sglang/inductor.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1 port=$2; shift 2
export SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$here/shim${PYTHONPATH:+:$PYTHONPATH}"
exec "$folder/venv/bin/python" -m sglang.launch_server --model-path "$folder/model" --host 127.0.0.1 --port "$port" --device cpu \
  --attention-backend torch_native --sampling-backend pytorch --grammar-backend none --disable-overlap-schedule \
  --max-total-tokens 16384 --max-running-requests 8 --enable-metrics --sleep-on-idle "$@"
