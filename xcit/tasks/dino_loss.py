"""Losses of self-supervised learning. Each is a function of fp32 tensors; statistics are taken over all processes.

V is the number of crops of an image, T ≤ V the number of those that the teacher sees, which come first; B is the number
of images in this process.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine import distributed


def cross_view_entropy(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each student crop with each teacher crop, except of a crop with itself (DINO, equation 3).

    It is logsumexp(z) - p · z, so the log-probabilities of the student are never stored.

    Args:
        teacher: probabilities p, (T, B, K).
        student: scores, (V, B, K); divided by `temperature` they are z.
        temperature: of the student.
    """
    scores = student / temperature
    entropies = scores.logsumexp(dim=-1) - torch.einsum("tbk,vbk->tvb", teacher, scores)  # (T, V, B)
    return mean_of_different_crops(entropies)


def mean_of_different_crops(pairs: Tensor) -> Tensor:
    """The mean over the pairs (teacher's crop, student's crop) of two crops and over images: (T, V, B) → a scalar."""
    T, V, B = pairs.shape
    return (pairs.sum() - pairs.diagonal().sum()) / (B * T * (V - 1))


def centered(scores: Tensor, center: Tensor, temperature: float | Tensor) -> Tensor:
    """The teacher's probabilities by centering and sharpening: (…, K) → (…, K)."""
    return ((scores - center) / temperature).softmax(dim=-1)


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float | Tensor, iterations: int = 3) -> Tensor:
    """The teacher's probabilities by the Sinkhorn-Knopp algorithm: (…, K) → (…, K).

    It alternates between equal use of all prototypes over the images of all processes and probabilities that sum to 1
    for each image (SwAV, arXiv 2006.09882, section 3.1; DINOv2 uses it for the teacher, arXiv 2304.07193).
    """
    logs = scores.flatten(0, -2).float() / temperature  # logarithms, as the scores may be large
    for _ in range(iterations):
        largest = distributed.maximum(logs.amax(dim=0))
        logs = logs - largest - distributed.total((logs - largest).exp().sum(dim=0)).log()
        logs = logs.log_softmax(dim=1)
    return logs.exp().view_as(scores)


def coding_rate_loss(teacher: Tensor, student: Tensor, eps: float, weight: float) -> Tensor:
    """SimDINO's loss: crops of an image agree, and the features of the batch fill all directions (arXiv 2502.10385).

    It is -similarity - weight × rate. The similarity is the mean cosine over the pairs of two crops. The rate is
    ½ logdet(I + D / eps × covariance) of the student's features, the mean over the crops that the teacher sees. As in
    the authors' code, it is multiplied by (D + N) / (D N), where N is the number of images in all processes.

    Args:
        teacher: vectors of length 1, (T, B, D).
        student: vectors of length 1, (V, B, D).
        eps: distortion that the coding rate allows.
        weight: of the coding rate.
    """
    similarity = torch.einsum("tbd,vbd->tvb", teacher, student)
    images, D = distributed.world_size() * student.shape[1], student.shape[2]
    balance = (D + images) / (D * images)
    rate = coding_rate(student[: len(teacher)], eps).mean()
    return -mean_of_different_crops(similarity) - weight * balance * rate


def coding_rate(features: Tensor, eps: float) -> Tensor:
    """½ logdet(I + D / eps × covariance): (T, B, D) → (T,). The covariance is that of all processes."""
    images, D = distributed.world_size() * features.shape[1], features.shape[2]
    covariance = distributed.total(features.mT @ features) / images
    return 0.5 * torch.logdet(torch.eye(D, device=features.device) + D / eps * covariance)


def koleo(features: Tensor) -> Tensor:
    """KoLeo: -mean log of the distance to the nearest other image (arXiv 1806.03198; in DINOv2 as here).

    features: (T, B, D), of any length; they are normalized. Each crop has its own loss, and the sum is returned.
    The neighbors are looked for among the images of this process.
    """
    x = F.normalize(features.float(), dim=-1)
    with torch.no_grad():
        similarity = x @ x.mT
        similarity.diagonal(dim1=1, dim2=2).fill_(-2)
        nearest = similarity.argmax(dim=2)  # (T, B)
    neighbors = torch.stack([crop[indices] for crop, indices in zip(x, nearest, strict=True)])
    return -(x - neighbors).square().sum(dim=-1).add(1e-16).sqrt().log().mean(dim=1).sum()


def masked_patch_entropy(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """iBOT's loss: the mean cross-entropy over the hidden patches (arXiv 2111.07832).

    Args:
        teacher: probabilities for the patches of whole images, (M, k, K).
        student: scores for the same patches of masked images, (M, k, K).
        temperature: of the student.
    """
    scores = student / temperature
    return (scores.logsumexp(dim=-1) - (teacher * scores).sum(dim=-1)).mean()
