"""A plain PyTorch loop without any framework, one thread: what every other figure is a ratio to.

Normalised float tensors in memory, contiguous; one model that all clients use in turn; no DataLoader; a
weighted mean. With ``--tuned`` the same loop as an expert would leave it: channels_last, pooling before the
ReLU, evaluation in batches of 100.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import torch  # noqa: E402
from common import EVALUATION_BATCH, LR, Clock, Net, arguments, workload  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Tuned(Net):
    """The same function: max-pooling and ReLU commute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.head(F.relu(self.dense(x.flatten(1))))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    w = workload(options)
    torch.set_num_threads(1)
    images, labels, test, truth = w.images(), w.labels(), w.images("test_"), w.labels("test_")
    clients, model, batch = w.clients(), w.network(), EVALUATION_BATCH
    layout, batch = (torch.channels_last, 100) if options.tuned else (torch.contiguous_format, batch)
    if options.tuned:
        model = Tuned()
        model.load_state_dict(w.initial())
    model.to(memory_format=layout)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LR)
    weights = [p.detach().clone() for p in parameters]
    shuffle = torch.Generator().manual_seed(3)
    steps = examples = 0
    clock = Clock(BEGUN)
    for number, cohort in enumerate(w.cohorts(), 1):
        total = sum(len(clients[client]) for client in cohort)
        mean = [torch.zeros_like(p) for p in weights]
        for client in cohort:
            load(parameters, weights)
            mine = clients[client]
            mine = mine[torch.randperm(len(mine), generator=shuffle)]
            x, y = lay(images[mine], options.tuned), labels[mine]
            for some, true in zip(x.split(w.batch), y.split(w.batch), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(some), true).backward()
                optimizer.step()
                steps += 1
            examples += len(mine)
            with torch.no_grad():
                torch._foreach_add_(mean, parameters, alpha=len(mine) / total)
        weights = mean
        if w.measured(number):
            load(parameters, weights)
            clock.evaluate(model, lay(test, options.tuned), truth, batch)
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
