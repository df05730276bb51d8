"""What can go wrong around a sandbox, as opposed to in a program."""


class SandboxUnavailable(RuntimeError):
    """No tier works here. The message names what is missing and how to mend it; nothing was run."""


class SandboxError(RuntimeError):
    """A sandbox that worked does so no more, or was asked for something it cannot do."""
