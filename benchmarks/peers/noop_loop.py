"""Overhead of a plain loop: only the call of the function."""

from benchmarks.peers.noop import noop, time_search, trials_flag


def main() -> None:
    """Call the function once for each configuration."""
    num_trials = trials_flag(__doc__)
    time_search(lambda: [noop({"x": number}) for number in range(num_trials)], num_trials)


if __name__ == "__main__":
    main()
