"""Lean forward passes over Hugging Face weights, and import of other formats."""
