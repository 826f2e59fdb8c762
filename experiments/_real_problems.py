"""Six small training problems on real text, tables and images, and on generated MNIST-1D.

Nothing is downloaded: the data ship with scikit-learn, or are drawn here. Each problem has a split
that does not depend on any seed; seeds draw initial weights and minibatches. Weights start as torch
initialises them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional

from learned_opt.tasks.datasets import breast_cancer, digits

SPLIT_SEED = 0
SEQUENCE = 32
HIDDEN = 64

# Ten outlines of twelve points, one a digit, read from left to right.
TEMPLATES = np.array([
    [4, 6, 7, 7.5, 8, 8, 8, 8, 7.5, 7, 6, 4],
    [3, 3, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 3],
    [5, 7, 8, 8, 7, 5.5, 4, 3, 2.5, 2.5, 3, 3.5],
    [3, 5, 7, 7.5, 6, 4.5, 4.5, 6, 7.5, 7, 5, 3],
    [8, 6.5, 5, 4, 4, 4, 4, 4.5, 8, 5, 3, 2],
    [7, 7, 7, 4, 4, 5, 6, 6, 5.5, 4.5, 3.5, 3],
    [7, 6, 4.5, 3.5, 3, 3, 4.5, 5.5, 5.5, 5, 4, 3],
    [7, 7, 7, 7, 7, 6, 5, 4, 3.5, 3, 2.5, 2],
    [5, 6.5, 7, 6, 4.5, 4, 4.5, 6, 7, 6.5, 5, 4],
    [5, 6.5, 7, 6.5, 5.5, 5.5, 6.5, 7, 6, 4, 2.5, 2],
])
_CANVAS, _POINTS = 72, 40


@dataclass(frozen=True, kw_only=True)
class Data:
    """Examples.

    Attributes:
        inputs: ``[M, ...]``, features (float32) or characters (int64).
        targets: ``[M]`` labels or standardised numbers, ``[M, T]`` next characters.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Tensor) -> Data:
        """The examples with these numbers."""
        return Data(inputs=self.inputs[index], targets=self.targets[index])

    def split(self, num_validation: int) -> tuple[Data, Data]:
        """Training and validation examples, drawn once and for all."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return self.select(order[num_validation:]), self.select(order[:num_validation])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to train.

    Attributes:
        name: what tables and files call it.
        train: examples that are trained on.
        validation: examples that are not.
        num_steps: the horizon, minibatches that the tuned baseline gets.
        batch_size: examples in one.
        build: a new model, initialised from torch's global generator.
        loss: mean loss from outputs and targets.
    """

    name: str
    train: Data
    validation: Data
    num_steps: int
    batch_size: int
    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]

    def model(self, seed: int) -> nn.Module:
        """The model that a seed begins with; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def batches(self, seed: int) -> Iterator[Data]:
        """Minibatches without end: each pass in a new order, incomplete ones left out."""
        rng = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.train), generator=rng)
            for index in order.split(self.batch_size):
                if len(index) == self.batch_size:
                    yield self.train.select(index)


class CharacterModel(nn.Module):
    """Logits of the next character at each place, by a GRU that starts anew with each sequence."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, HIDDEN // 2)
        self.recurrent = nn.GRU(HIDDEN // 2, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, num_characters)

    def forward(self, characters: Tensor) -> Tensor:
        """``[B, T]`` characters to ``[B, T, V]`` logits."""
        found: Tensor = self.head(self.recurrent(self.embedding(characters))[0])
        return found


def perceptron(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers and an activation between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def convnet(channels: int = 16) -> nn.Sequential:
    """Three strided convolutions over 40 points, then a linear map to ten classes."""
    return nn.Sequential(
        nn.Unflatten(1, (1, _POINTS)),
        nn.Conv1d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * _POINTS // 8, 10),
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """In nats, over all examples and places."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of one output each."""
    return functional.mse_loss(outputs.squeeze(-1), targets)


def mnist_1d(num_examples: int, *, seed: int) -> Data:
    """Digits as noisy curves, after Greydanus 2020 (arXiv:2011.14439).

    As published, a template of twelve points is padded with 36 to 60 points and stretched to 72 in
    all, scaled by up to a fifth either way, moved by up to 48 points, laid on correlated noise,
    given a little white noise, sheared, and subsampled to 40 points. The ten outlines are our own,
    and all is divided by its standard deviation.

    Args:
        num_examples: how many; classes are as equally large as that allows, in random order.
        seed: of everything random.

    Returns:
        ``[num_examples, 40]`` curves and their digits.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_examples) % len(TEMPLATES))

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, (num_examples, 1))

    outlines = (TEMPLATES - TEMPLATES.mean(1, keepdims=True)) / 6
    num_points = TEMPLATES.shape[1]
    width = num_points * _CANVAS / (num_points + uniform(36, 60))
    place = (np.arange(_CANVAS) - uniform(0, 48)) / width * (num_points - 1)
    curves = _at(outlines[labels], place) * uniform(0.8, 1.2)
    # White noise that a Gaussian of two points smoothes. It lies beside the digit, not on it.
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
    kernel /= kernel.sum()
    white = rng.normal(size=(num_examples, _CANVAS + len(kernel) - 1))
    windows = np.lib.stride_tricks.sliding_window_view(white, len(kernel), axis=1)
    is_digit = (place >= 0) & (place <= num_points - 1)
    curves = np.where(is_digit, curves, 0.25 * windows @ kernel)
    curves += 0.02 * rng.normal(size=curves.shape)
    curves += uniform(-0.375, 0.375) * np.linspace(-0.5, 0.5, _CANVAS)
    shown = np.broadcast_to(np.linspace(0, _CANVAS - 1, _POINTS), (num_examples, _POINTS))
    found = _at(curves, shown)
    return Data(
        inputs=torch.from_numpy(found / found.std()).float(),
        targets=torch.from_numpy(labels).long(),
    )


def _at(rows: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row at the places of its own between its points, by straight lines."""
    last = rows.shape[1] - 1
    place = np.clip(place, 0, last)
    left = np.minimum(place.astype(int), last - 1)
    low, high = (np.take_along_axis(rows, left + i, axis=1) for i in (0, 1))
    return np.asarray(low + (high - low) * (place - left))


def text() -> str:
    """What scikit-learn says about its data sets; it varies a little with the version."""
    pages = [page for page in files("sklearn.datasets.descr").iterdir() if ".rst" in page.name]
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted(pages, key=lambda p: p.name))


def characters() -> tuple[Data, int]:
    """Sequences of 32 characters that do not overlap, the characters after each, how many kinds."""
    written = text()
    kinds = {kind: number for number, kind in enumerate(sorted(set(written)))}
    numbers = torch.tensor([kinds[kind] for kind in written])
    count = (len(numbers) - 1) // SEQUENCE
    inputs, targets = (numbers[i : i + count * SEQUENCE].reshape(count, SEQUENCE) for i in (0, 1))
    return Data(inputs=inputs, targets=targets), len(kinds)


def _diabetes() -> Data:
    """Progression of diabetes in 442 patients from ten features, all standardised."""
    features, progression = load_diabetes(return_X_y=True)
    inputs, targets = (
        torch.from_numpy((values - values.mean(0)) / values.std(0)).float()
        for values in (features, progression)
    )
    return Data(inputs=inputs, targets=targets)


def problem(
    name: str,
    data: tuple[Data, Data],
    build: Callable[[], nn.Module],
    *,
    num_steps: int,
    batch_size: int,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Problem:
    """From training and validation examples, see `Problem`."""
    return Problem(
        name=name,
        train=data[0],
        validation=data[1],
        num_steps=num_steps,
        batch_size=batch_size,
        build=build,
        loss=loss,
    )


@cache
def problems() -> tuple[Problem, ...]:
    """All six."""
    images = Data(inputs=digits().inputs.float(), targets=digits().labels).split(360)
    curves = mnist_1d(5000, seed=SPLIT_SEED).split(1000)
    sequences, num_characters = characters()
    phrases = sequences.split(len(sequences) // 10)
    cancer = Data(inputs=breast_cancer().inputs.float(), targets=breast_cancer().labels).split(114)
    diabetes = _diabetes().split(88)

    return (
        problem(
            "digits, deep",
            images,
            lambda: perceptron(64, 32, 32, 32, 32, 10),
            num_steps=400,
            batch_size=64,
        ),
        problem(
            "digits, wide", images, lambda: perceptron(64, 512, 10), num_steps=320, batch_size=64
        ),
        problem("MNIST-1D, conv", curves, convnet, num_steps=600, batch_size=64),
        problem(
            "text, GRU",
            phrases,
            lambda: CharacterModel(num_characters),
            num_steps=480,
            batch_size=32,
        ),
        problem(
            "breast cancer", cancer, lambda: perceptron(30, 32, 32, 2), num_steps=320, batch_size=32
        ),
        problem(
            "diabetes",
            diabetes,
            lambda: perceptron(10, 32, 32, 1),
            num_steps=320,
            batch_size=32,
            loss=squared_error,
        ),
    )
