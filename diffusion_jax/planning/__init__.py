"""Plans of runs on hardware that is not there: memory, work, traffic and the time they take at least."""
