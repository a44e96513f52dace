"""The one exception whose message is meant for the user."""


class StepalignError(Exception):
    """Bad input, or a run that cannot go on.

    The message names the file, line or key, the value found and the values allowed. The command line prints it without
    a traceback. Any other exception is a bug.
    """
