"""The one exception a user is meant to see."""


class StepalignError(Exception):
    """Bad input, or a run that cannot go on.

    The message names the file, line or key, what was found and what is allowed. The command line prints it
    without a traceback; anything else that surfaces is a bug.
    """
