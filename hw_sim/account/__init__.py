"""What a run of the engine amounts to on a chip: counts, work, energy and time."""
