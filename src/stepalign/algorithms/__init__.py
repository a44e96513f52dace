"""Algorithms: what a step's rollouts become, and the loss on them. One module an algorithm."""
