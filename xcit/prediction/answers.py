"""From a model's logits to answers: probabilities of classes or labels, or numbers. The kind of target decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KINDS = {"classify": "class", "distill": "class", "multilabel": "classes", "regress": "values"}
"""Task → the kind of its targets, for the tasks whose answer is one row of outputs for each image."""


@dataclass(frozen=True)
class Answer:
    """What a model says of one image."""

    names: list[str]
    """Of the most likely classes or labels, the most likely first; or of all numbers in their order."""
    indices: list[int]
    """Of these, in the order of the model's outputs."""
    probabilities: list[float]
    """Of these; empty for numbers."""
    values: list[float]
    """The numbers in their own units; empty for classes and labels."""
    found: list[str]
    """The labels, of all, whose probability is above their threshold; empty for classes and numbers."""
    logits: Tensor = field(repr=False)
    """(K,), fp32, on the CPU: the model's outputs for all classes, labels or numbers."""


@dataclass(frozen=True)
class Head:
    """How logits are read.

    Args:
        kind: "class" (softmax), "classes" (a sigmoid and a threshold for each label) or "values" (numbers, which the
            model predicts with mean 0 and standard deviation 1).
        classes: the names of the classes, labels or numbers.
        thresholds: (K,), probabilities for "classes".
        mean, std: (K,), for "values".
    """

    kind: str
    classes: Sequence[str]
    thresholds: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    @classmethod
    def of_task(cls, name: str, classes: Sequence[str], state: Mapping[str, Any]) -> "Head":
        """The head of a task in `KINDS`. state: the task's state dict."""
        buffers = ("thresholds", "mean", "std") if KINDS[name] != "class" else ()
        return cls(KINDS[name], classes, **{key: state[key].float().cpu() for key in buffers if key in state})

    def activate(self, logits: Tensor) -> Tensor:
        """(B, K) → the probability of each class or label, or the numbers, (B, K)."""
        if self.kind == "class":
            return logits.softmax(1)
        if self.kind == "classes":
            return logits.sigmoid()
        return logits if self.mean is None or self.std is None else logits * self.std + self.mean

    def found(self, outputs: Tensor) -> Tensor:
        """Which labels are above their thresholds, (B, K), for "classes". outputs: of `activate`."""
        return outputs > (0.5 if self.thresholds is None else self.thresholds)

    def threshold(self, index: int) -> float:
        """That of a label, for "classes"."""
        return 0.5 if self.thresholds is None else self.thresholds[index].item()

    def decisions(self, logits: Tensor) -> Tensor | None:
        """What is decided for each image: its class, (B, 1), or its labels, (B, K); None for numbers."""
        if self.kind == "classes":
            return self.found(self.activate(logits))
        return logits.argmax(dim=1, keepdim=True) if self.kind == "class" else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file: the kind, what turns outputs into answers, and its numbers for each output."""
        formula = {"class": "softmax(output)", "classes": "sigmoid(output)", "values": "output * std + mean"}[self.kind]
        numbers = {"thresholds": self.thresholds, "mean": self.mean, "std": self.std}
        given = {name: of_each.tolist() for name, of_each in numbers.items() if of_each is not None}
        return {"kind": self.kind, "formula": formula, **given}

    def answers(self, logits: Tensor, top: int) -> list[Answer]:
        """An answer for each image. logits: (B, K), fp32, on the CPU. top: the number of classes or labels."""
        return [self.answer(*row, top) for row in zip(logits, self.activate(logits), strict=True)]

    def answer(self, logits: Tensor, outputs: Tensor, top: int) -> Answer:
        if self.kind == "values":
            return Answer(list(self.classes), list(range(len(outputs))), [], outputs.tolist(), [], logits)
        best = outputs.topk(min(top, len(outputs)))
        indices = best.indices.tolist()
        found: list[str] = []
        if self.kind == "classes":
            above = self.found(outputs).tolist()
            found = [name for name, is_above in zip(self.classes, above, strict=True) if is_above]
        return Answer([self.classes[i] for i in indices], indices, best.values.tolist(), [], found, logits)
