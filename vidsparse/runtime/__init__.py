"""Everything that runs while a model runs: processors, layers, the clock, the report."""
