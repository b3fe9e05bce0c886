"""The errors that a person sees, and the exit status each one becomes. Layer 0: imports nothing."""


class UserError(Exception):
    """What was asked cannot be done as asked; the message names the value and the fix. Exit status 2."""

    exit_status = 2


class EngineUnavailable(UserError):
    """A subject that was asked for by name cannot run here; the message says why. Exit status 3."""

    exit_status = 3


class EngineUnsupported(EngineUnavailable):
    """A subject has no such model, by its own word: nothing that broke."""


class HarnessBug(Exception):
    """The harness or the machine failed: out of memory, out of disk, a bug of ours. Never a finding. Exit status 4."""

    exit_status = 4
