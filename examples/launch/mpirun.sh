#!/bin/bash
# Train with Open MPI on two hosts with eight GPUs each, a process a GPU:
#   examples/launch/mpirun.sh HOST1 HOST2
# Open MPI numbers the processes. Since its version 5 it no longer says where process 0 is, so the
# first host is named here. Any free port will do.
set -euo pipefail
first=$1
second=$2

mpirun --host "$first:8,$second:8" \
  -x JAX_COORDINATOR_ADDRESS="$first:8476" \
  ringworld train shards \
  --data.folder "$HOME/tokens" \
  --folder "$HOME/runs/shards" \
  --stages.0.mesh.fsdp 2 \
  --stages.0.mesh.seq 8
