#!/bin/sh
# Runs an experiment as a job of the cluster: sh submit.sh EXPERIMENT RUN_FOLDER [more options of `fedvision simulate`]
# The experiment's folder travels with the job, plug-ins beside it included; the run folder must be on the shared disk.
set -eu
experiment=$1 run=$2
shift 2
exec ray job submit \
  --address "${RAY_ADDRESS:-http://127.0.0.1:8265}" \
  --working-dir "$(dirname "$experiment")" \
  -- fedvision simulate "$(basename "$experiment")" --engine ray --address auto --out "$run" "$@"
