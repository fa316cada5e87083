"""Rollout engines behind one protocol, and partial rollouts over the store."""
