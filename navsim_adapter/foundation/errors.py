"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something outside the program is wrong: a file, a field, a recipe key.

    The message is one line: where, what was found, what to do. The command line prints it and exits with 2.
    """


def did_you_mean(word: str, known: list[str]) -> str:
    """`` (did you mean 'omega'?)`` when a known word is near, else an empty string."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
