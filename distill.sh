#!/bin/sh
# From raw text to distilled students in one command: sets up the environment if needed, then runs a recipe.
#   sh distill.sh                                 the embedded sample, about 10 minutes on 2 cores
#   sh distill.sh jsons/recipes/own_text.json     your recipe; run it again to go on where it stopped
#   sh distill.sh RECIPE --steps 1000             --FIELD VALUE sets a field in every stage
# NPROC (processes a machine; default: the visible GPUs, else 1), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT go to torchrun;
# see docs/distributed.md.
set -eu
root=$(cd "$(dirname "$0")" && pwd)
python=$(sh "$root/scripts/setup.sh")
if [ $# -gt 0 ] && { [ "${1#-}" = "$1" ] || [ "$1" = --help ] || [ "$1" = -h ]; }; then
    exec "$python" "$root/train.py" "$@"
fi
case " $* " in
*" --teacher_name_or_path"*) exec "$python" "$root/train.py" "$@" ;;
esac
cd "$root"
"$python" "$root/train.py" jsons/recipes/sample.json "$@" --show-recipe > /dev/null # a wrong argument is said at once
"$python" -m distill sample --output saves/sample-world
exec "$python" "$root/train.py" jsons/recipes/sample.json "$@"
