"""A plain PyTorch loop without any framework, one thread: what every other figure is a ratio to.

Normalised float tensors in memory, contiguous; one model that all clients use in turn; no DataLoader; a
weighted mean. With ``--tuned`` the same loop as an expert would leave it: channels_last, pooling before the
ReLU, convolutions and pooling in oneDNN's layout for batches of 10 and more, evaluation in batches of 100.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import torch  # noqa: E402
from common import EVALUATION_BATCH, LR, Clock, Net, Workload, arguments, workload  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Tuned(Net):
    """The same function: max-pooling and ReLU commute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to_mkldnn() if len(x) >= 10 else x
        x = F.relu(F.max_pool2d(self.conv1(x), 2, 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2, 2))
        x = x.to_dense() if x.is_mkldnn else x
        return self.head(F.relu(self.dense(x.flatten(1))))


class Trainer:
    """One model, in which one client after another trains.

    Args:
        w: The workload.
        tuned: Whether as an expert would leave it.
    """

    def __init__(self, w: Workload, tuned: bool) -> None:
        self._w, self.tuned = w, tuned
        self._images, self._labels = w.images(), w.labels()
        self.model = Tuned() if tuned else Net()
        self.model.load_state_dict(w.initial())
        self.model.to(memory_format=torch.channels_last if tuned else torch.contiguous_format)
        self.parameters = list(self.model.parameters())
        self._optimizer = torch.optim.SGD(self.parameters, lr=LR)
        self.evaluation_batch = 100 if tuned else EVALUATION_BATCH

    def train(self, images: torch.Tensor, weights: list[torch.Tensor]) -> int:
        """Train from some weights on images by number, in this order, and return the steps."""
        load(self.parameters, weights)
        x, y = lay(self._images[images], self.tuned), self._labels[images]
        steps = 0
        for some, true in zip(x.split(self._w.batch), y.split(self._w.batch), strict=True):
            self._optimizer.zero_grad()
            F.cross_entropy(self.model(some), true).backward()
            self._optimizer.step()
            steps += 1
        return steps


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    w = workload(options)
    torch.set_num_threads(1)
    trainer, clients = Trainer(w, options.tuned), w.clients()
    test, truth = w.images("test_"), w.labels("test_")
    weights = [p.detach().clone() for p in trainer.parameters]
    shuffle = torch.Generator().manual_seed(3)
    steps = examples = 0
    clock = Clock(BEGUN)
    for number, cohort in enumerate(w.cohorts(), 1):
        total = sum(len(clients[client]) for client in cohort)
        mean = [torch.zeros_like(p) for p in weights]
        for client in cohort:
            mine = clients[client]
            steps += trainer.train(mine[torch.randperm(len(mine), generator=shuffle)], weights)
            examples += len(mine)
            with torch.no_grad():
                torch._foreach_add_(mean, trainer.parameters, alpha=len(mine) / total)
        weights = mean
        if w.measured(number):
            load(trainer.parameters, weights)
            clock.evaluate(trainer.model, lay(test, options.tuned), truth, trainer.evaluation_batch)
        clock.round()
    clock.report(steps=steps, examples=examples)


def lay(images: torch.Tensor, tuned: bool) -> torch.Tensor:
    """Return images [B, 1, H, W] with the strides of channels_last; for one channel torch leaves them."""
    return images.view(*images.shape[0:1], *images.shape[2:], 1).permute(0, 3, 1, 2) if tuned else images


@torch.no_grad()
def load(parameters: list[torch.nn.Parameter], weights: list[torch.Tensor]) -> None:
    for parameter, tensor in zip(parameters, weights, strict=True):
        parameter.copy_(tensor)


if __name__ == "__main__":
    main()
