"""The errors that a person sees, and the exit status each one becomes. Layer 0: the standard library's words alone."""

import errno


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


TOUCHED = "its packages were changed"
"""How the message of a worker starts whose environment was touched; it is then asked once more in a new process."""

_WANT = {
    errno.ENOSPC: "out of disk or of shared memory",
    errno.EDQUOT: "out of disk quota",
    errno.ENOMEM: "out of memory",
}


def want(error: BaseException | None) -> str:
    """What the machine had too little of, if that is behind an error; empty if nothing."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "out of memory"
        if isinstance(error, OSError) and error.errno in _WANT:
            return _WANT[error.errno]
        for number, words in _WANT.items():
            if f"(os error {number})" in str(error):
                return words
        error = error.__cause__ or error.__context__
    return ""
