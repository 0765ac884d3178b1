"""Shards, tables, manifests and the files under a workspace. Knows nothing of Ray or methods."""
