"""The hub service: it looks at the GPUs, judges leases, warns, takes idle slices back, and shows the pool."""
