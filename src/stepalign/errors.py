"""The one exception whose message is meant for the user, and the short text of any other."""


class StepalignError(Exception):
    """Bad input, or a run that cannot go on.

    The message names the file, line or key, the value found and the values allowed. The command line prints it without
    a traceback. Any other exception is a bug.
    """


def not_installed(need: str, extra: str) -> StepalignError:
    """Return the error of a missing package. `extra` is Stepalign's optional dependency that installs it."""
    return StepalignError(f'{need}: pip install "stepalign[{extra}]"')


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with its type where the message is empty or a key."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if not line or isinstance(error, KeyError) else line
