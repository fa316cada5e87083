"""What stands between a trainer and its engines: weights in shared memory, metadata, processes."""
