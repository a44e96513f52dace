"""Losses: pure functions from tensors and numbers to (loss, metrics)."""
