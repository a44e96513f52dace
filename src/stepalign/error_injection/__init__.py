"""Put one known error into correct solutions, so that the first wrong token is known exactly.

`inject` puts a slip into one trace, `sources` reads correct solutions, `sets` writes a folder of planted slips.
"""
