"""Speed and memory against the published algorithm and against the machine's limits: `python -m benchmarks.run`."""
