"""What steps on a device have come to, kept there until the host looks."""

import torch
from torch import Tensor


class Unseen:
    """What the steps since the last look have come to, on their device.

    Attributes:
        steps: How many.
        due: How many to look at together.
        suspect: The first product that was not finite, or had no finite norm [m, n].
        first: Its number; known after ``wait``.
        end: The position behind the last step of any recurrence; known after ``wait``.
    """

    def __init__(self, like: Tensor) -> None:
        self.steps, self.due = 0, 1
        self.suspect = torch.zeros_like(like)
        self.first = self.end = 0
        # Whether all was finite, and the two numbers.
        self._finite = torch.ones((), dtype=torch.bool, device=like.device)
        self._first, self._end = torch.zeros(2, dtype=torch.int64, device=like.device)

    def note(
        self, product: Tensor, finite: Tensor, alive: Tensor, *, position: int, count: int
    ) -> None:
        """Note a step to ``position`` that any recurrence took if ``alive``, and its product."""
        self.steps += 1
        new = self._finite & ~finite
        self.suspect = torch.where(new, product, self.suspect)
        self._first = torch.where(new, count - len(product) + 1, self._first)
        self._end = torch.where(alive, position, self._end)
        self._finite = self._finite & finite

    def wait(self, alive: Tensor, *, most: int) -> tuple[bool, bool]:
        """Return whether any recurrence is alive, and whether all that was noted is finite."""
        self.steps, self.due = 0, min(2 * self.due, most)
        numbers = torch.stack([alive.any().long(), self._finite.long(), self._first, self._end])
        going, finite, self.first, self.end = numbers.tolist()
        return bool(going), bool(finite)
