"""Trials that cost nothing, by a plain loop: the cost of calling the function and no more."""

from benchmarks.peers.noop import noop, time_search, trials_flag


def main() -> None:
    """Call the function once for each configuration."""
    num_trials = trials_flag(__doc__)
    time_search(lambda: [noop({"x": number}) for number in range(num_trials)], num_trials)


if __name__ == "__main__":
    main()
