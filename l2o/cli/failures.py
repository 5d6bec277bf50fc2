"""What goes wrong outside of the program, in one line that says what to do.

A full disk, a limit that a shell sets, too little memory, a GPU that breaks: libraries say so each
in their own words. What is none of these is a defect of ours, and keeps its traceback.
"""

from __future__ import annotations

import errno
import os

from tasks.runs.files import ADVICE

DEVICE_ERRORS = ("AcceleratorError", "OutOfMemoryError")
"""What torch raises where a GPU breaks or is too small, which nobody can mend here."""
PROCESSES = (
    "no more processes or threads may be started here: end some, or raise the limit (ulimit -u)"
)
SPACE = (
    "no space left; what was saved before is kept: make room, also where temporary files go, and "
    "give the command again"
)
MEMORY = (
    "not enough memory: end other programs, ask for less at a time, or raise the limit (ulimit -v)"
)
BY_NUMBER = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EAGAIN: PROCESSES,
    errno.ENOMEM: MEMORY,
}
BY_WORDS = {
    "can't start new thread": PROCESSES,
    "Resource temporarily unavailable": PROCESSES,
    "can't allocate memory": MEMORY,
    "annot allocate memory": MEMORY,
    "failed to map segment": MEMORY,
    "bad_alloc": MEMORY,
    "database or disk is full": SPACE,
    "No space left on device": SPACE,
    "maximum recursion depth": "something that was given is nested too deeply",
}
"""What is said in exceptions of any kind."""
ITSELF = ("gloo/transport",)
"""What says itself what is wrong: another process of a meta-training was killed."""


def explained(error: Exception) -> str | None:
    """One line about ``error``; None where it is a defect of ours."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return _of_system(error)
    text = str(error)
    for words, said in BY_WORDS.items():
        if words in text and not isinstance(error, ValueError):  # those are in our words
            return said
    if isinstance(error, MemoryError):
        return f"{MEMORY} ({text})" if text else MEMORY
    if isinstance(error, RuntimeError | ImportError):
        device = type(error).__name__ in DEVICE_ERRORS
        known = device or any(words in text for words in ITSELF)
        return text.partition("\n")[0] if known else None
    return text


def _of_system(error: OSError) -> str:
    """What the system says, of which file, and what to do."""
    number = error.errno or 0
    said = BY_NUMBER.get(number) or f"{error.strerror}{ADVICE.get(number, '')}"
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    return f"{' and '.join(named)}: {said}" if named else said


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)
