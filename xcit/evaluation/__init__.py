"""Evaluation: accuracy across resolutions, its cost in time and memory, and the report."""
