#!/usr/bin/env bash
# Lint, types and every test that CI runs; --fast leaves out the slow ones. More arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(sh scripts/setup.sh)
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}
select=()
if [ "${1:-}" = "--fast" ]; then
    select=(-m "not slow")
    shift
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# The second worker takes over tests when it has no more of its own: they are far from equally long.
exec "$python" -m pytest -n 2 --dist worksteal "${select[@]}" "$@"
