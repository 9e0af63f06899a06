"""Programs that annotate: simulated ones, and real raters replayed. They are called simulated everywhere."""
