"""Prompt sets: generated, and read from files."""
