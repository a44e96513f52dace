"""The loop, its checkpoints and its folder; who teaches and how an update is made."""
