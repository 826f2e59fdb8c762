"""Trees of tensors: round trips and shapes."""

import pytest
import torch

from learned_opt import trees
from learned_opt.errors import LearnedOptError, require, unknown_name


def params():
    rng = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 2, 4, generator=rng),
        "b": torch.randn(3, 2, generator=rng),
        "s": torch.randn(3, generator=rng),
    }


def test_flatten_and_unflatten_are_inverse():
    flat = trees.flatten(params())
    assert flat.shape == (3, 11)
    for name, tensor in trees.unflatten(flat, params()).items():
        assert torch.equal(tensor, params()[name])


def test_depth_counts_matrices_and_what_has_more_axes():
    assert trees.num_matrices(params()) == 1
    assert trees.num_matrices({**params(), "k": torch.zeros(3, 2, 2, 5)}) == 2
    assert trees.num_matrices({"x": torch.zeros(3, 7)}) == 0


def test_squared_norm_sums_over_all_tensors_of_a_problem():
    torch.testing.assert_close(
        trees.squared_norm(params()), trees.flatten(params()).square().sum(1)
    )


def test_select_and_repeat_follow_the_problem_axis():
    tree = {"a": params(), "b": torch.arange(3)}
    twice = trees.repeat(tree, 2)
    assert twice["b"].tolist() == [0, 1, 2, 0, 1, 2]
    back = trees.select(twice, torch.tensor([3, 4, 5]))
    assert torch.equal(back["a"]["w"], tree["a"]["w"])
    assert list(trees.leaves(tree)) == ["a.w", "a.b", "a.s", "b"]


def test_per_problem_multiplies_row_by_row():
    like = torch.ones(3, 2, 4, dtype=torch.float32)
    rates = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    product = trees.per_problem(rates, like) * like
    assert product.dtype == torch.float32
    assert product[:, 1, 3].tolist() == [1.0, 2.0, 3.0]
    assert trees.per_problem(torch.tensor(2.0), like).dim() == 0


def test_errors_speak_in_one_sentence():
    assert str(unknown_name("rule", "adm", ["adam", "sgd"])) == (
        "unknown rule 'adm'; did you mean 'adam'? Known: adam, sgd"
    )
    assert "did you mean" not in str(unknown_name("rule", "zzzz", ["adam", "sgd"]))
    require(True, "never")
    with pytest.raises(LearnedOptError, match="x must be positive, got 0"):
        require(False, "x must be positive, got 0")


@pytest.mark.parametrize("limit", [0, 1 << 24])
def test_a_product_is_one_matrix_times_one_vector_for_each_problem(limit, monkeypatch):
    """Both ways of computing it, and their gradients."""
    monkeypatch.setattr(trees, "_PRODUCT_BYTES", limit)
    rng = torch.Generator().manual_seed(0)
    matrices = torch.randn(5, 3, 4, generator=rng, dtype=torch.float64)
    vectors = torch.randn(5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    product = trees.batched_product(matrices, vectors)
    for n in range(5):
        torch.testing.assert_close(product[n], matrices[n] @ vectors[n])
    (slope,) = torch.autograd.grad(product.sum(), vectors)
    torch.testing.assert_close(slope, matrices.sum(1))
