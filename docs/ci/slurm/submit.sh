#!/usr/bin/env bash
# One method a task of an array, then a job that judges them together: docs/ci/slurm/submit.sh [OPTIONS OF SBATCH]
# Options such as --gpus=1 --partition=gpu are for the tasks that measure. Call it from the repository.
set -euo pipefail
here=$(dirname "$0")
export BUDGET=${BUDGET:-budgets/builtin.yaml}
# Folders on a file system of all nodes; the cache may be a URL, too.
export QUANT_CACHE=${QUANT_CACHE:-$PWD/.quant-cache}
export REPORTS=${REPORTS:-$PWD/reports}

mkdir -p "$REPORTS"
# Reports of an earlier array are none of this one's.
find "$REPORTS" -maxdepth 1 -name '*.json' -delete
methods=$(python -m pytest_quantbudget check "$BUDGET" --methods | wc -l)
array=$(sbatch --parsable --array="0-$((methods - 1))" "$@" "$here/measure.sbatch")
# After any end of them: a method that no report holds fails by name.
sbatch --parsable --dependency="afterany:${array%%;*}" "$here/judge.sbatch"
