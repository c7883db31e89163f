#!/bin/sh
# Entry point of the container: run `tune-hpc ARGUMENTS`. The container ends with this script, and drivers of searches
# that the service has started would be killed. They get SIGTERM, and the script waits until they have saved the states
# of their trials, at most 30 s each.
umask 077
tune-hpc "$@" &
child=$!
trap 'kill -TERM "$child"' TERM INT
wait "$child"
code=$?
# A signal ends `wait` before the command has ended.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
done
pkill -TERM -f tune_hpc.jobs.driver
while pgrep -f tune_hpc.jobs.driver >/dev/null; do
    sleep 0.5
done
exit "$code"
