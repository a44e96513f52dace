"""Programs that made files of the package. They are not part of the wheel."""
