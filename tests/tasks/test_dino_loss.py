"""The losses of self-supervised learning equal their formulas, written here in another way."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from xcit.engine import distributed
from xcit.tasks.dino_loss import (
    centered,
    coding_rate,
    coding_rate_loss,
    cross_view_entropy,
    koleo,
    masked_patch_entropy,
    sinkhorn,
)

from ..conftest import in_two_processes


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_pairs(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """DINO's loss as its paper's algorithm 1 has it: a loop over the pairs of two crops."""
    losses = [
        -(p * F.log_softmax(s / temperature, dim=-1)).sum(dim=-1).mean()
        for t, p in enumerate(teacher)
        for v, s in enumerate(student)
        if t != v
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("crops", [2, 6])
def test_the_cross_entropy_is_the_mean_over_pairs_of_crops(crops: int) -> None:
    teacher = centered(random(2, 5, 7), random(7, seed=1), 0.04)
    ours, theirs = (random(crops, 5, 7, seed=2).requires_grad_() for _ in range(2))
    cross_view_entropy(teacher, ours, 0.1).backward()
    by_pairs(teacher, theirs, 0.1).backward()
    torch.testing.assert_close(cross_view_entropy(teacher, ours, 0.1), by_pairs(teacher, theirs, 0.1))
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_centering_and_sharpening() -> None:
    scores, center = random(2, 3, 5), random(5, seed=1)
    torch.testing.assert_close(centered(scores, center, 0.5), F.softmax((scores - center) / 0.5, dim=-1))
    assert centered(scores, center, 1e-3).max(dim=-1).values.min() > 0.99, "a low temperature makes it sure"


def test_sinkhorn_gives_equal_use_of_prototypes_and_distributions() -> None:
    scores = random(2, 32, 4)
    p = sinkhorn(scores, 0.5, iterations=100)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 32))
    torch.testing.assert_close(p.flatten(0, 1).sum(dim=0), torch.full((4,), 16.0))


def test_three_iterations_of_sinkhorn_equal_swavs_algorithm() -> None:
    """Rows are prototypes and columns images there, and the matrix sums to 1."""
    scores = random(2, 6, 5)
    Q = (scores.flatten(0, 1) / 0.05).exp().T
    Q = Q / Q.sum()
    for _ in range(3):
        Q = Q / Q.sum(dim=1, keepdim=True) / 5
        Q = Q / Q.sum(dim=0, keepdim=True) / 12
    torch.testing.assert_close(sinkhorn(scores, 0.05), (12 * Q).T.view(2, 6, 5).float())


def test_sinkhorn_of_large_scores_is_finite() -> None:
    assert sinkhorn(1000 * random(2, 6, 5).float(), 0.04).isfinite().all()


def test_koleo_is_the_log_distance_to_the_nearest_neighbor() -> None:
    features = random(2, 9, 4).float()
    expected = 0.0
    for crop in F.normalize(features, dim=-1):
        distances = torch.cdist(crop, crop).fill_diagonal_(math.inf)
        expected -= distances.min(dim=1).values.log().mean().item()
    assert koleo(features).item() == pytest.approx(expected, rel=1e-5)


def test_koleo_pushes_neighbors_apart() -> None:
    features = random(1, 9, 4).float().requires_grad_()
    before = koleo(features)
    (step,) = torch.autograd.grad(before, features)
    assert koleo(features - 1e-3 * step) < before


def test_the_coding_rate_is_that_of_the_singular_values() -> None:
    z = F.normalize(random(3, 20, 6), dim=-1)
    expected = 0.5 * torch.log1p(6 / 0.5 * torch.linalg.svdvals(z) ** 2 / 20).sum(dim=-1)
    torch.testing.assert_close(coding_rate(z, 0.5), expected)


def test_simdinos_loss_is_minus_similarity_and_coding_rate() -> None:
    teacher, student = (F.normalize(random(n, 20, 6, seed=n), dim=-1) for n in (2, 5))
    cosines = [
        F.cosine_similarity(t, s, dim=-1).mean() for i, t in enumerate(teacher) for j, s in enumerate(student) if i != j
    ]
    rate = sum(torch.logdet(torch.eye(6) + 6 / (20 * 0.5) * z.T @ z) / 2 for z in student[:2]) / 2
    expected = -torch.stack(cosines).mean() - 3 * (6 + 20) / (6 * 20) * rate
    torch.testing.assert_close(coding_rate_loss(teacher, student, 0.5, weight=3), expected)


def test_features_that_collapse_have_a_larger_loss() -> None:
    spread = F.normalize(random(1, 64, 8), dim=-1).expand(2, -1, -1)
    alike = F.normalize(torch.ones_like(spread) + 1e-3 * spread, dim=-1)
    assert coding_rate_loss(alike, alike, 0.5, 1.0) > coding_rate_loss(spread, spread, 0.5, 1.0)


def test_the_patch_loss_is_the_mean_over_hidden_patches() -> None:
    teacher, student = random(2, 6, 5).softmax(dim=-1), random(2, 6, 5, seed=1)
    expected = F.cross_entropy((student / 0.1).flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(masked_patch_entropy(teacher, student, 0.1), expected)


# Two processes, each with half of the images.


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = slice(3 * rank, 3 * rank + 3)
    teacher, student = (F.normalize(random(n, 6, 4, seed=n), dim=-1) for n in (2, 5))
    student.requires_grad_()
    loss = coding_rate_loss(teacher[:, own], student[:, own], 0.5, 1.0)
    loss.backward()
    assert student.grad is not None
    # DDP takes the mean of the gradients over the processes, and the mean of the losses is reported.
    dist.all_reduce(student.grad)
    mean = distributed.mean(loss.detach())
    balanced = sinkhorn(random(2, 6, 4, seed=7)[:, own], 0.05)
    torch.save((mean, student.grad / 2, balanced), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    in_two_processes(work, tmp_path)
    (loss, gradient, first), (_, _, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    teacher, student = (F.normalize(random(n, 6, 4, seed=n), dim=-1) for n in (2, 5))
    student.requires_grad_()
    expected = coding_rate_loss(teacher, student, 0.5, 1.0)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, student.grad)
    torch.testing.assert_close(torch.cat([first, second], dim=1), sinkhorn(random(2, 6, 4, seed=7), 0.05))
