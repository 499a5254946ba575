"""Examples + model to a run, as a stream of events."""
