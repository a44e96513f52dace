"""Training and measurement of the solver that ships in `stepalign.lab`."""
