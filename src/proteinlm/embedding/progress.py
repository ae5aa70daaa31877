"""How a long run tells what it does: lines, and residues done of residues to do.

In: calls from the loops. Out: whatever the subclass makes of them; the command line draws a bar, a worker process
writes lines for its parent, and `Silent` does nothing.
"""

import abc


class Progress(abc.ABC):
    """Where a run reports. Subclasses are final."""

    @abc.abstractmethod
    def say(self, line: str) -> None:
        """Tell the user one line."""

    @abc.abstractmethod
    def begin(self, residues: int) -> None:
        """Work on `residues` residues begins."""

    @abc.abstractmethod
    def advance(self, residues: int) -> None:
        """So many more residues are done."""

    @abc.abstractmethod
    def end(self) -> None:
        """The work that began has ended."""


class Silent(Progress):
    """Tells nobody."""

    def say(self, line: str) -> None:
        """Nothing."""

    def begin(self, residues: int) -> None:
        """Nothing."""

    def advance(self, residues: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
