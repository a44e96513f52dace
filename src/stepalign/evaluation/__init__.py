"""Evaluation: metrics of an adapter on held-out problems, with intervals, and comparison of adapters."""
