"""Shards: index, cache, fetching, writing."""
