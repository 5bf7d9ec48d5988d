"""The one error that programs show to people as a line instead of a traceback.

Imports nothing, so that data workers may raise it without jax.
"""

__all__ = ["BadExample", "UserError"]


class UserError(ValueError):
    """A mistake of the user: one readable line, exit code 2, no traceback.

    The text says what was given and what would have been valid.
    """


class BadExample(UserError):
    """One example that cannot be used: a damaged image, a text that cannot be decoded.

    The pipeline takes another in its place and counts it; see `data.pipeline`.
    """
