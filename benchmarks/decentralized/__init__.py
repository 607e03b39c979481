"""Every method on the same work, with local data only and cost included.

    python -m benchmarks.decentralized --suite smoke|small|paper     run what is missing in the suite's table
    python -m benchmarks.decentralized --report                      docs/results.md and its figures, from the tables

A *setting* is work (data, model, partition, graph, number of agents, start, rounds); a *cell* is a setting, a method
and a seed. Each cell is one simulated run and becomes one row per round of the suite's table.
"""
