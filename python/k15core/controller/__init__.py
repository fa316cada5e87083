"""The loop itself."""
