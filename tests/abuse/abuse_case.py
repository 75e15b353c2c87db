"""A case of the abuse suite: what is sent, and the only answers that are right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from http_bodies import npy

# Two float32 elements; `op=round` makes 1 and -0 of them.
SMALL = npy(torch.tensor([0.6, -0.4]))


@dataclass(frozen=True)
class Case:
    """One client, the bytes that it sends on one connection, and what it must get.

    `answers` is what the connection carries back, in order: `400 bad_framing; 200` and so on, a code only
    where the status is an error. No answer at all means that the connection is closed without a word.
    `ends` says that the client sends no more after these bytes.
    """

    claim: str
    request: bytes
    answers: str
    ends: bool = False

    @property
    def expected(self) -> list[str]:
        """The answers, one by one."""
        return [answer.strip() for answer in self.answers.split(";") if answer.strip()]

    @property
    def is_refusal(self) -> bool:
        """Whether the first answer is an error."""
        return self.answers[:1] in ("4", "5")
