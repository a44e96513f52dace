"""Planted slips: correct solutions with one slip put into them, so that the first wrong token is known exactly.

`planting` puts the slip in and carries it on, `sources` says which correct solutions there are, `records` turns both
into rollouts and ground-truth critiques, `sets` writes a whole folder of them.
"""
