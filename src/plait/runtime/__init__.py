"""Where policies and probes meet a model: hooks, stores of keys, rotary positions, meters."""
