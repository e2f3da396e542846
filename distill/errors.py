"""The one exception for mistakes a user can mend, and what other exceptions say, in one line.

The command line turns an InputError into one line and exit code 2.
"""


class InputError(ValueError):
    """A file, a setting or a folder the user gave is wrong.

    The message is one line that says where, what was found, and what is allowed or what to do.
    """


def first_line(error: Exception, most: int | None = 120) -> str:
    """The first line of a library's message, cut to `most` characters; the exception's name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def describe_os_error(error: OSError) -> str:
    """What the system said, and about which file."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
