"""Scores for responses, one file a kind."""
