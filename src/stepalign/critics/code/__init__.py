"""Critiques of programs: unit tests in the schema's words, and the reference's lines in the solver's program.

`critic` answers one graded rollout. `mend` turns the solver's program into one that may pass; `locate` says which line
is wrong where nothing mends it. `silence` and `error_span` are what checks and probe need of programs.
"""
