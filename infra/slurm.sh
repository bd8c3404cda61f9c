#!/usr/bin/env bash
# A refresh on the nodes of a Slurm job, one of Dask's workers on each; the first node starts the run too.
# Usage: sbatch [--nodes N] infra/slurm.sh --source LISTING [--set NAME=VALUE]…
#
# From the environment come the servers that all nodes share: see docs/scale.md. What a killed job has done stays done.
#SBATCH --job-name=medgen
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
set -euo pipefail

for name in MEDGEN_DATABASE_URL MEDGEN_S3_ENDPOINT MEDGEN_S3_ACCESS_KEY MEDGEN_S3_SECRET_KEY PREFECT_API_URL; do
    if [ -z "${!name:-}" ]; then
        echo "medgen: set $name: the nodes share these servers and no folder" >&2
        exit 2
    fi
done

bin=${MEDGEN_BIN:-$PWD/.venv/bin}
disk=${SLURM_TMPDIR:-/tmp} # of the node itself
export MEDGEN_HOME=$disk/medgen-$SLURM_JOB_ID
export MEDGEN_WORKERS=$SLURM_CPUS_PER_TASK
export MEDGEN_RUNNER=dask MEDGEN_RUNNER_ADDRESS=tcp://$(hostname):8786
export DASK_DISTRIBUTED__WORKER__DAEMON=false # steps start processes of their own
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=false # with Python before 3.11.8 it can stop a worker for good

"$bin/dask" scheduler --port 8786 --no-dashboard &
srun --kill-on-bad-exit=0 "$bin/dask" worker "$MEDGEN_RUNNER_ADDRESS" --nworkers 1 --nthreads 8 --no-dashboard \
    --local-directory "$disk/dask-$SLURM_JOB_ID" &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"$bin/medgen" refresh "$@"
