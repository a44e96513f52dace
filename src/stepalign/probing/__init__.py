"""The probe: see, token by token, where a context design's signal lands, before a run is paid for.

The room is `probing` because `stepalign.probe` is the function that does it.
"""
