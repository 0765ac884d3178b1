"""Neighbours and clusters of embeddings, as functions of arrays."""
