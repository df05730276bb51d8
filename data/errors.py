"""The error that every part below the stages may raise for all of them."""


class StageError(Exception):
    """A stage cannot go on. The message is one sentence for the user: what, where, how to mend it.

    retry: whether the same command may succeed another time, as what follows from config and data alone does not.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry
