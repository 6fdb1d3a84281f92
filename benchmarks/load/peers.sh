#!/usr/bin/env bash
# peers.sh [FOLDER]: sglang's own load generators in FOLDER/venv (default: .peers at the root of the repository), for `make bench`.
# About 2 GB and two minutes the first time: they come in the sglang wheel, and the Python one imports most of it.
#
# Uses the pins of the tests' engine (a CPU build of torch where pip finds it), and what the benchmark's data sets import.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/.peers}
mkdir -p "$folder"; folder=$(cd "$folder" && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
test -x "$folder/venv/bin/python" || "$python" -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input"
$pip --no-deps -r "$root/tests/engine/engine/requirements.txt"
$pip datasets
rm -rf "$folder/shim" && cp -r "$root/tests/engine/engine/shim" "$folder/shim"
PYTHONPATH="$folder/shim" "$folder/venv/bin/python" -m sglang.bench_serving --help > /dev/null
echo "peers are installed: make bench finds them in $folder"
