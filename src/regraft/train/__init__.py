"""The one training loop, and the solver of linear probes."""
