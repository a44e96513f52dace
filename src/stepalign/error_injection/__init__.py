"""Put one known error into each correct solution, so that the first wrong token is known.

`inject` puts a slip into one trace, `sources` reads correct solutions, `sets` writes a folder of planted slips.
"""
