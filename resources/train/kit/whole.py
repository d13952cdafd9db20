"""A step's batch as one, whatever the processes and forwards that it is divided into.

A loss that is a mean over the batch's boxes, or that compares its crops with each other, is the loss of that batch only
where its counts and its rows are those of all of it. Then two processes, one process of twice the micro-batch, and one
that accumulates the gradient of several forwards learn the same.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from resources.train.kit.run import Processes

Total = Callable[[torch.Tensor], torch.Tensor]


def itself(part: torch.Tensor) -> torch.Tensor:
    """A batch's total where the batch is one forward in one process."""
    return part


class WholeBatch:
    """Sums counts and gathers rows over all forwards of a step, in all processes.

    A step of one forward does so as it goes. A step of several runs them all without gradient first (`noting`), to note
    what each asks for, and again with gradient, to be answered: as GradCache does (Gao et al., arXiv 2101.06983).

    A loss asks for the same, in the same order, in every forward.

    Args:
        processes: of torchrun.
        forwards: how many this process makes of its part of the batch; as many as every other process.
    """

    def __init__(self, processes: Processes, forwards: int = 1) -> None:
        self.processes, self.forwards = processes, forwards
        self.noted: list[list[torch.Tensor]] = []  # by forward, what it asked for
        self.is_noting = False
        self.answers: list[torch.Tensor] = []  # in the order of the questions
        self.forward = self.asked = 0

    @contextlib.contextmanager
    def noting(self, network: nn.Module) -> Iterator[None]:
        """The forwards of a step without gradient; batch norm's running statistics stay as they are.

        Args:
            network: what runs.
        """
        norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        momenta = [each.momentum for each in norms]
        for norm in norms:
            norm.momentum = 0.0
        self.is_noting = True
        try:
            with torch.no_grad():
                yield
        finally:
            self.is_noting = False
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        for parts in zip(*self.noted, strict=True):
            if parts[0].dim():
                self.answers.append(self.processes.gather(torch.cat(parts)))
            else:
                self.answers.append(self.processes.sum(torch.stack(parts).sum()))

    def begin(self, forward: int) -> None:
        """Say which of this process's forwards is next."""
        self.forward, self.asked = forward, 0
        if self.is_noting:
            self.noted.append([])

    def total(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of a count, a scalar, over the whole batch; without gradient."""
        part = part.detach().float()
        if self.is_noting:
            self.noted[self.forward].append(part)
            return part
        return self._answer() if self.noted else self.processes.sum(part)

    def rows(self, part: torch.Tensor) -> torch.Tensor:
        """The rows of the whole batch, in its order; those of this forward with their gradient.

        Args:
            part: (N, D) or (N,), this forward's.
        """
        if self.is_noting:
            self.noted[self.forward].append(part.detach())
            return part
        number = self.asked
        whole = self._answer() if self.noted else self.processes.gather(part.detach())
        before = sum(len(forward[number]) for forward in self.noted[: self.forward])
        mine = sum(len(forward[number]) for forward in self.noted) or len(part)
        start = self.processes.before(mine) + before
        return torch.cat([whole[:start], part, whole[start + len(part) :]])

    def share(self, value: torch.Tensor) -> torch.Tensor:
        """Of a value that every forward computes of the whole batch: its part of it, with all of its gradient."""
        return value.detach() / (self.forwards * self.processes.world) + (value - value.detach())

    def _answer(self) -> torch.Tensor:
        self.asked += 1
        return self.answers[self.asked - 1]


def portions(batch: int, processes: Processes, largest: int) -> list[range]:
    """The places in a step's batch that each forward of this process takes: in order, nearly equal, none empty.

    Args:
        batch: of a step, over all processes; at least one for each.
        processes: of torchrun.
        largest: places of a forward, at most. Every process makes as many forwards.
    """
    rank, world = processes.rank, processes.world
    share = math.ceil(batch / world)
    forwards = min(math.ceil(share / largest), batch // world)  # each has at least one place
    first, last = batch * rank // world, batch * (rank + 1) // world
    edges = [first + (last - first) * number // forwards for number in range(forwards + 1)]
    return [range(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
