#!/usr/bin/env bash
# Make the peers' virtual environment: benchmarks/setup_peers.sh [DIRECTORY, default .venv-peers]; about 2 GB.
# torch.compile needs a C++ compiler on the PATH when the benchmarks run, and so does mlx's mx.compile on Linux.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/../.venv-peers}
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --requirement "$here/peers.txt"
"$venv/bin/python" -m pip list --format=freeze | grep -iE '^(torch|jax|jaxlib|mlx|numba|numpy|scikit-learn)='
