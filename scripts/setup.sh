#!/bin/sh
# Makes .venv with the pinned requirements if it is not there, and prints the Python to use. Sourced by nobody: run it.
# PYTHON names the interpreter to start from; PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and HF_ENDPOINT are honoured as they are.
# An activated virtual environment that has the package's requirements is used as it is.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
stamp="$root/.venv/.minidistill-$(cksum < "$root/requirements.txt" | tr ' ' '-')"
if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c 'import torch, transformers, textbrewer, ltp, datasets' 2>/dev/null; then
    echo "$VIRTUAL_ENV/bin/python"
    exit 0
fi
if [ ! -f "$stamp" ]; then
    start=${PYTHON:-python3}
    "$start" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $start is older than Python 3.11; name a newer one with PYTHON=/path/to/python3" >&2
        exit 2
    }
    echo "setting up $root/.venv (once; about 2 GB with torch's CPU build, 6 GB with CUDA)" >&2
    "$start" -m venv "$root/.venv"
    # torch first, so that no other package pulls another build of it.
    torch=$(grep '^torch==' "$root/requirements.txt")
    "$root/.venv/bin/python" -m pip install --quiet "$torch" >&2
    "$root/.venv/bin/python" -m pip install --quiet -r "$root/requirements.txt" >&2
    "$root/.venv/bin/python" -m pip install --quiet --no-deps --editable "$root" >&2
    touch "$stamp"
fi
echo "$root/.venv/bin/python"
