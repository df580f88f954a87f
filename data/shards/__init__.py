"""Shards in webdataset format: their index, the cache for remote shards, fetching and writing."""
