#!/bin/bash
# One host's part of a run on as many hosts as there are. Start it on each, at any time, and again on one that is back:
#   ENDPOINT=host-a:29500 elastic.sh --config config.yaml --output-dir /shared/runs/kd-7
: "${ENDPOINT:?is where the hosts meet, the name of one of them and a port, such as host-a:29500}"
hosts=${HOSTS:-1:2}                  # at least and at most
processes=${PROCESSES:-8}            # on this host
wait_seconds=${WAIT_SECONDS:-30}     # for more hosts, once there are enough
most_starts=${MOST_STARTS:-100}

# What is lost ends the processes of all hosts, and each host's loop starts them again: torchrun restarts nothing.
for ((start = 1; start <= most_starts; start++)); do
    python -m crashproof.pytorch.torchrun --nnodes "$hosts" --nproc-per-node "$processes" --max-restarts 0 \
        --rdzv-backend c10d --rdzv-endpoint "$ENDPOINT" --rdzv-id kd-7 --rdzv-conf last_call_timeout="$wait_seconds" \
        -m training.distill_kd "$@"
    code=$?
    if [ "$code" -eq 0 ]; then
        exit 0
    elif [ "$code" -eq 2 ]; then
        echo "Exit code 2: starting again without a change will not help." >&2
        exit 2
    fi
    echo "Exit code $code: start $start of at most $most_starts has ended." >&2
    sleep 5
done
echo "That was the last start (MOST_STARTS)." >&2
exit "$code"
