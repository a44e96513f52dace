"""The paper's comparison on a laptop, with a small solver and a task that is hard for it.

stepalign lab --seeds 5
"""
