"""Claims and the scripts that measure them; `python -m benchmarks.decentralized` compares the methods."""
