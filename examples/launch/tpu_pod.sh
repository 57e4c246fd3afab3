#!/bin/bash
# Train on all workers of a TPU pod slice, here v5p-32 (16 chips):
#   examples/launch/tpu_pod.sh NAME ZONE
# The slice tells JAX which workers there are. /mnt/shared is a disk that all of them have, such as
# Filestore, and ringworld is installed on each.
set -euo pipefail
name=$1
zone=$2

gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command="
  ringworld train shards \
    --data.folder /mnt/shared/tokens \
    --folder /mnt/shared/runs/shards \
    --stages.0.mesh.seq 16 \
    --stages.0.weights-over seq"
