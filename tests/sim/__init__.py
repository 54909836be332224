"""The engine's bookkeeping under a seeded scheduler of work and faults; see `simulation`."""
