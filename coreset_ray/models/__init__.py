"""Encoders, heads and trained networks: torch, torchvision, timm, open_clip; no Ray, no io."""
