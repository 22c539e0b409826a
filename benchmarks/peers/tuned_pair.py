"""The tuned loop in two bare processes: what a federation costs when there is nothing but its arithmetic.

Two forked processes share images and weights in memory; the clients of a round are dealt out in advance, the
longest first, and one pipe each carries their numbers. No messages, no records, no Ray, nothing that could
fail: no framework is faster on the same kernels.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

from multiprocessing import get_context  # noqa: E402
from multiprocessing.connection import Connection  # noqa: E402

import torch  # noqa: E402
from common import Clock, Workload, arguments, workload  # noqa: E402
from plain_loop import Trainer, lay, load  # noqa: E402

PROCESSES = 2


class Pair:
    """The processes and what they share.

    Args:
        w: The workload.
    """

    def __init__(self, w: Workload) -> None:
        self._w, self._clients = w, w.clients()
        self._trainer = Trainer(w, tuned=True)
        self._test, self._truth = lay(w.images("test_"), True), w.labels("test_")
        self.weights = [p.detach().clone().share_memory_() for p in self._trainer.parameters]
        self._sums = [[torch.zeros_like(p).share_memory_() for p in self.weights] for _ in range(PROCESSES)]
        context = get_context("fork")
        self._ends: list[Connection] = []
        for place in range(PROCESSES):
            ours, theirs = context.Pipe()
            context.Process(target=self._work, args=(place, theirs), daemon=True).start()
            self._ends.append(ours)

    def round(self, cohort: list[int]) -> int:
        """Train the clients of a round, average into the weights, and return the steps."""
        dealt: list[list[int]] = [[] for _ in range(PROCESSES)]
        for client in sorted(cohort, key=lambda client: -len(self._clients[client])):
            min(dealt, key=lambda hand: sum(len(self._clients[c]) for c in hand)).append(client)
        total = sum(len(self._clients[client]) for client in cohort)
        steps = self._send([("train", hand, total) for hand in dealt])
        for weight, *parts in zip(self.weights, *self._sums, strict=True):
            weight.copy_(torch.stack(parts).sum(0))
        return steps

    def right(self) -> float:
        """Return the share of test images that the weights name rightly."""
        return self._send([("evaluate", [], 0)] * PROCESSES) / len(self._truth)

    def _send(self, orders: list[tuple[str, list[int], int]]) -> int:
        for end, order in zip(self._ends, orders, strict=True):
            end.send(order)
        return sum(end.recv() for end in self._ends)

    def _work(self, place: int, end: Connection) -> None:
        torch.set_num_threads(1)
        shuffle = torch.Generator().manual_seed(place)
        while True:
            kind, clients, total = end.recv()
            end.send(
                self._train(place, clients, total, shuffle) if kind == "train" else self._evaluate(place)
            )

    @torch.no_grad()
    def _train(self, place: int, clients: list[int], total: int, shuffle: torch.Generator) -> int:
        torch._foreach_zero_(self._sums[place])
        steps = 0
        for client in clients:
            mine = self._clients[client]
            with torch.enable_grad():
                steps += self._trainer.train(mine[torch.randperm(len(mine), generator=shuffle)], self.weights)
            torch._foreach_add_(self._sums[place], self._trainer.parameters, alpha=len(mine) / total)
        return steps

    @torch.no_grad()
    def _evaluate(self, place: int) -> int:
        load(self._trainer.parameters, self.weights)
        model, batch = self._trainer.model.eval(), self._trainer.evaluation_batch
        pairs = list(zip(self._test.split(batch), self._truth.split(batch), strict=True))[place::PROCESSES]
        found = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
        model.train()
        return found


def main() -> None:
    w = workload(arguments(__doc__).parse_args())
    torch.set_num_threads(1)
    pair = Pair(w)
    steps, clients = 0, w.clients()
    clock = Clock(BEGUN)
    for number, cohort in enumerate(w.cohorts(), 1):
        steps += pair.round(cohort)
        if w.measured(number):
            begun = time.perf_counter()
            clock.accuracies.append(pair.right())
            clock.evaluation += time.perf_counter() - begun
        clock.round()
    examples = sum(len(clients[client]) for cohort in w.cohorts() for client in cohort)
    clock.report(steps=steps, examples=examples)


if __name__ == "__main__":
    main()
