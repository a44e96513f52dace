"""Evaluation: what an adapter does on held-out problems, and whether two adapters differ."""
