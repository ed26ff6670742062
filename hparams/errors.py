"""The errors that end a script with one line instead of a traceback."""


class UserError(Exception):
    """Input that the user can mend: one line that names the flag or file and the fix.

    Scripts print it to stderr without a traceback and exit with status 2.
    """


class RunError(Exception):
    """Something that stopped a run which had begun: one line that says what, and how to go on.

    Scripts print it to stderr without a traceback and exit with status 1.
    """


class NotFiniteError(RunError):
    """A network computed NaN or infinity from weights that are finite."""
