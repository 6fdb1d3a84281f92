#!/usr/bin/env bash
# install.sh [FOLDER]: SGLang 0.5.23 for a CPU without CUDA, in FOLDER/venv (default: .engine at the root of the repository), and the
# tests' model in FOLDER/model. 85 s and 1.8 GB the first time, nothing after it.
#
# Needs Python 3.11 and a CPU build of torch 2.13.0 where pip finds it (an extra index or find-links in pip's own configuration).
# Everything is pinned and installed without dependencies: SGLang's own list would bring CUDA kernels and another torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-$here/../../../.engine}
mkdir -p "$folder"; folder=$(cd "$folder" && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
wanted=$(cat "$here/requirements.txt" "$here/install.sh" "$here/make_model.py" <("$python" -VV) | sha256sum)

# two runs at once: the second waits, and finds the stamp
exec 9> "$folder/.lock"; flock 9
[ "$(cat "$folder/.stamp" 2>/dev/null)" = "$wanted" ] && exit 0
rm -f "$folder/.stamp"

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "install.sh: the pins are for Python 3.11, this is $("$python" --version) (set PYTHON=python3.11)" >&2; exit 1; }
echo "installing SGLang for the CPU into $folder/venv (1.8 GB)"
"$python" -m venv --clear "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-input -r "$here/requirements.txt"
"$folder/venv/bin/python" - <<'CHECK'
import sys

import torch

if torch.version.cuda:
    sys.exit(f"install.sh: torch {torch.__version__} is a CUDA build, a CPU build is needed (give pip an index or a folder that has it)")
CHECK
"$folder/venv/bin/python" "$here/make_model.py" "$folder/model"
echo "$wanted" > "$folder/.stamp"
