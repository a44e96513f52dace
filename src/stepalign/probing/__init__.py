"""The probe: credit of each sampled token under several contexts, before a run is paid for.

The room is `probing` because `stepalign.probe` is its function.
"""
