"""Finds, reads, converts and loads weights: file formats, sources, published names and the Hugging Face hub."""
