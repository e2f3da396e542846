#!/usr/bin/env bash
# Tests the wheel: builds it, installs it beside the pinned requirements into an empty virtual environment, and runs the
# tests in a copy of this checkout without the package, so that `import distill` is the wheel's. Arguments go to pytest.
# PYTHON names the interpreter to start from. With WHEEL_TEST_DIR all of it stays in that folder, and the next time only
# the wheel and the copy are made again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "${WHEEL_TEST_DIR:-}" ]; then
    mkdir -p "$WHEEL_TEST_DIR"
    work=$(cd "$WHEEL_TEST_DIR" && pwd -P)
else
    work=$(cd "$(mktemp -d)" && pwd -P)
    trap 'rm -rf "$work"' EXIT
fi
unset PYTHONPATH
python=$work/venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$work/venv"
# torch first, as in scripts/setup.sh
"$python" -m pip install --quiet "$(grep '^torch==' "$root/requirements.txt")"
"$python" -m pip install --quiet -r "$root/requirements.txt"

project=$work/project
rm -rf "$project" "$work/wheel"
mkdir "$project"
git -C "$root" ls-files -z --cached --others --exclude-standard | tar -C "$root" --null --files-from - -cf - |
    tar -C "$project" -xf -
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$project"
"$python" -m pip install --quiet --no-deps --force-reinstall "$work"/wheel/*.whl
rm -rf "$project/distill" "$project/build" "$project"/*.egg-info

cd "$project"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}
imported=$("$python" -c 'import distill; print(distill.__file__)')
case $imported in
"$work"/venv/*) echo "tested: $imported" ;;
*)
    echo "error: $imported is imported, not the wheel in $work/venv" >&2
    exit 1
    ;;
esac
"$python" -m pytest -n 2 --dist worksteal "$@"
