"""Post-train reasoning models from feedback whose structure you design."""

__version__ = "0.1.0"
