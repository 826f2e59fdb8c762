"""Six more small training problems, which nobody looked at while the bundled weights were made.

Those of `_real_problems.py` showed what was wrong with earlier versions of the controller, so they
have had a say in it. These have not: other architectures (layer norm and skip connections, a
causal transformer, pooling, an autoencoder, a generated regression, wine) and mostly other data.
Nothing is downloaded here either.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from _real_problems import (
    SEQUENCE,
    SPLIT_SEED,
    Data,
    Problem,
    characters,
    perceptron,
    problem,
    squared_error,
)
from sklearn.datasets import load_wine, make_friedman1
from torch import Tensor, nn
from torch.nn import functional

from learned_opt.tasks.datasets import digits


class Block(nn.Module):
    """A perceptron with layer norm before it, beside a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, W]`` to ``[B, W]``."""
        found: Tensor = x + self.inner(x)
        return found


class Transformer(nn.Module):
    """Logits of the next character at each place, by one layer of causal attention."""

    def __init__(self, num_characters: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, width)
        self.places = nn.Parameter(0.02 * torch.randn(SEQUENCE, width))
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, num_characters)
        ahead = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
        self.register_buffer("ahead", ahead, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, T]`` characters to ``[B, T, V]`` logits."""
        hidden = self.embedding(text) + self.places
        found: Tensor = self.head(self.layer(hidden, src_mask=self.ahead))
        return found


def residual() -> nn.Sequential:
    """Three blocks with layer norm."""
    return nn.Sequential(
        nn.Linear(64, 48), *(Block(48) for _ in range(3)), nn.LayerNorm(48), nn.Linear(48, 10)
    )


def pooled() -> nn.Sequential:
    """Two convolutions over 8 x 8 pixels, each with max-pooling."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def standardised(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 in each column."""
    return (values - values.mean(0)) / values.std(0)


@cache
def fresh_problems() -> tuple[Problem, ...]:
    """All six."""
    pixels = digits().inputs.float()
    images = Data(inputs=pixels, targets=digits().labels).split(360)
    even = (pixels - pixels.mean()) / pixels.std()
    copies = Data(inputs=even, targets=even).split(360)
    sequences, num_characters = characters()
    phrases = sequences.split(len(sequences) // 10)
    features, kinds = load_wine(return_X_y=True)
    wine = Data(
        inputs=standardised(torch.from_numpy(features)).float(), targets=torch.from_numpy(kinds)
    ).split(36)
    features, values = make_friedman1(2000, noise=1.0, random_state=SPLIT_SEED)
    friedman = Data(
        inputs=standardised(torch.from_numpy(features)).float(),
        targets=standardised(torch.from_numpy(values)).float(),
    ).split(400)
    return (
        problem("digits, residual", images, residual, num_steps=400, batch_size=64),
        problem("digits, pooled", images, pooled, num_steps=400, batch_size=64),
        problem(
            "digits, autoencoder",
            copies,
            partial(perceptron, 64, 48, 8, 48, 64, activation=nn.Tanh),
            num_steps=480,
            batch_size=64,
            loss=functional.mse_loss,
        ),
        problem(
            "text, transformer",
            phrases,
            partial(Transformer, num_characters),
            num_steps=480,
            batch_size=32,
        ),
        problem(
            "wine",
            wine,
            partial(perceptron, 13, 24, 24, 3, activation=nn.SiLU),
            num_steps=320,
            batch_size=16,
        ),
        problem(
            "Friedman",
            friedman,
            partial(perceptron, 10, 64, 64, 1, activation=nn.SiLU),
            num_steps=400,
            batch_size=64,
            loss=squared_error,
        ),
    )
