"""Objectives: pure functions from tensors to (loss, metrics). They know weights of tokens, not records."""
