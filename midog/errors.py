"""The one exception that is meant for the user, and how a command ends with it."""

import sys


class UserError(Exception):
    """A problem the user can mend: one line that names the file and the remedy.

    Every other exception is a bug and keeps its traceback.
    """


def exit_code(command, *arguments):
    """Run a command; 0, or 1 after a `UserError`, which becomes one line on stderr."""
    try:
        command(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def brief(error):
    """The last line of an error's text, for a one-line message; decoders quote what they stumbled over at length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200].rstrip(".")
