"""Weight decay applies to matrices only, learning rates may differ by layer, and Muon gets the matrices."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xcit
from xcit.engine.freezing import freeze
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import clip_gradients, make_optimizer, parameter_groups, peak_lr
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState, read_state
from xcit.engine.task import Task
from xcit.errors import InputError
from xcit.storage import write_tensors
from xcit.tasks import TASKS

from .toy import target_of


def test_weight_decay_applies_to_matrices_and_kernels_only() -> None:
    task = TASKS["classify"](xcit.create_model("xcit_n12", num_classes=10), target_of(10))
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05, options={"betas": [0.8, 0.9]})
    names = {id(p): name for name, p in task.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    for name, parameter in task.named_parameters():
        exempt = parameter.ndim == 1 or name.endswith(("cls_token", "temperature"))
        assert decay[name] == (0.0 if exempt else 0.05), name
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_weight_decay_of_the_temperatures_is_a_choice(layer_decay: float | None) -> None:
    task = TASKS["classify"](xcit.create_model("xcit_n12", depth=2, num_classes=10), target_of(10))

    def decayed(decay_temperature: bool) -> set[str]:
        groups = parameter_groups(task, 0.05, layer_decay, decay_temperature)
        names = {id(p): name for name, p in task.named_parameters()}
        return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}

    assert decayed(True) - decayed(False) == {f"model.blocks.{i}.attn.temperature" for i in range(2)}
    assert decayed(False) <= decayed(True)


def test_the_learning_rate_scales_with_the_global_batch_size() -> None:
    assert peak_lr(5e-4, 1024) == pytest.approx(1e-3)


def test_an_option_that_the_optimizer_does_not_accept_is_named() -> None:
    with pytest.raises(InputError, match=r"optim\.options=.*not accepted by sgd"):
        make_optimizer(torch.nn.Linear(1, 1), name="sgd", lr=0.1, weight_decay=0, options={"momentun": 0.9})


def test_gradients_can_be_clipped_parameter_by_parameter() -> None:
    long, short = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    frozen = torch.nn.Parameter(torch.zeros(4))
    long.grad, short.grad = torch.full((4,), 5.0), torch.full((4,), 0.5)
    clip_gradients([long, short, frozen], 3.0, "each")
    assert long.grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert short.grad.tolist() == [0.5] * 4
    clip_gradients([long, short, frozen], 1.0, "all")
    assert (long.grad.norm() ** 2 + short.grad.norm() ** 2).sqrt().item() == pytest.approx(1.0, rel=1e-5)


# Layer-wise learning rate decay.


def batch_of(images: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(images=images, targets=torch.eye(5)[:4], weights=torch.ones(4))


def tiny(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return xcit.create_model("xcit_n12", **{"depth": 3, "patch_size": 8, "num_classes": 5} | options)


class WithProjection(Task):
    """A task that trains a module outside its model, such as DINO's projection head."""

    def __init__(self) -> None:
        super().__init__(tiny(), target_of(5))
        self.projection = torch.nn.Linear(5, 4)


def by_name(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Maps each parameter's name to its group. Checks that each parameter is in exactly one group."""
    names = {id(p): name for name, p in module.named_parameters()}
    found = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


@pytest.mark.parametrize("make", [tiny, WithProjection, lambda: TASKS["classify"](tiny(), target_of(5))])
def test_learning_rates_increase_from_the_stem_to_the_head(make: Any) -> None:
    module = make()
    optimizer = make_optimizer(module, name="adamw", lr=1e-3, weight_decay=0.05, options={}, layer_decay=0.5)
    scales = {
        name.removeprefix("model."): group.get("lr_scale", 1.0) for name, group in by_name(module, optimizer).items()
    }
    order = ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "cls_attn_blocks.0", "cls_attn_blocks.1", "head"]
    for place, layer in enumerate(reversed(order)):
        assert {scale for name, scale in scales.items() if name.startswith(f"{layer}.")} == {0.5**place}, layer
    assert scales["cls_token"] == scales["pos_embed.token_projection.weight"] == 0.5**6
    assert scales["norm.weight"] == 0.5
    assert {scale for name, scale in scales.items() if name.startswith("projection.")} <= {1.0}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_weight_decay_does_not_depend_on_layer_decay(layer_decay: float | None) -> None:
    task = WithProjection()
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05, options={}, layer_decay=layer_decay)
    for name, group in by_name(task, optimizer).items():
        exempt = task.get_parameter(name).ndim == 1 or name.endswith(("cls_token", "temperature"))
        assert group["weight_decay"] == (0.0 if exempt else 0.05), name


def test_the_schedule_keeps_the_ratios_between_layers() -> None:
    task = WithProjection()
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05, options={}, layer_decay=0.5)
    schedule = make_schedule(
        optimizer, num_updates=20, updates_per_epoch=2, warmup_epochs=2, warmup_lr=1e-6, cooldown_epochs=2, min_lr=1e-5
    )
    groups = by_name(task, optimizer)
    for step in range(20):
        schedule.step_update(step)
        full = groups["projection.weight"]["lr"]
        assert groups["model.head.weight"]["lr"] == pytest.approx(full)
        assert groups["model.blocks.0.mlp.fc1.weight"]["lr"] == pytest.approx(0.5**5 * full)
    assert full == pytest.approx(1e-5)


def test_the_first_step_of_a_layer_equals_its_learning_rate() -> None:
    """Adam's first step equals the learning rate wherever the gradient is not zero."""
    task = TASKS["classify"](tiny(), target_of(5))
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.0, options={}, layer_decay=0.5)
    schedule = make_schedule(
        optimizer, num_updates=4, updates_per_epoch=4, warmup_epochs=0, warmup_lr=0, cooldown_epochs=0, min_lr=1e-3
    )
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    schedule.step_update(0)
    task(batch_of(torch.randn(4, 3, 16, 16)))["loss"].backward()
    optimizer.step()
    for name, scale in (("head.bias", 1), ("cls_attn_blocks.1.mlp.fc2.bias", 0.5), ("blocks.0.gamma2", 0.5**5)):
        moved = (task.model.get_parameter(name) - before[f"model.{name}"]).abs().max()
        assert moved.item() == pytest.approx(1e-3 * scale, rel=1e-2), name


def test_a_model_without_group_matcher_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"optim\.layer_decay=0\.5: the model has no group_matcher, which names its layers"
    ):
        make_optimizer(
            Task(torch.nn.Linear(1, 1), target_of(1)), name="adamw", lr=1, weight_decay=0, options={}, layer_decay=0.5
        )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_layer_decay_works_for_timm_models(name: str) -> None:
    task = TASKS["classify"](xcit.create_model("timm", name=name, num_classes=5), target_of(5))
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05, options={}, layer_decay=0.5)
    scales = {group.get("lr_scale", 1.0) for group in by_name(task, optimizer).values()}
    assert max(scales) == 1 and min(scales) < 0.5


# Muon.


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["muon", "adamuon"])
def test_muon_gets_the_matrices_of_hidden_layers_and_adamw_the_rest(name: str, layer_decay: float | None) -> None:
    task = TASKS["classify"](tiny(), target_of(5))
    optimizer = make_optimizer(task, name=name, lr=1e-3, weight_decay=0.05, options={}, layer_decay=layer_decay)
    before = {key: p.detach().clone() for key, p in task.named_parameters()}
    task(batch_of(torch.randn(4, 3, 16, 16)))["loss"].backward()
    optimizer.step()
    told = by_name(task, optimizer)
    for key, parameter in task.named_parameters():
        hidden = key.endswith(
            ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "q.weight", "k.weight", "v.weight")
        )
        assert optimizer.state[parameter]["use_muon"] is hidden, key
        assert told[key].get("use_fallback", False) is not hidden, key
        assert not torch.equal(parameter, before[key]), key
    assert sum(state["use_muon"] for state in optimizer.state.values()) == 3 * 4 + 2 * 6


def test_groups_for_muon_work_with_any_optimizer() -> None:
    """The keys for Muon leave weight decay and parameters as they are for other optimizers."""
    groups = parameter_groups(TASKS["classify"](tiny(), target_of(5)), 0.05, None)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert all(isinstance(group["params"], list) for group in groups)


@pytest.mark.parametrize(
    ("name", "options"), [("adamw", {}), ("muon", {}), ("lamb", {}), ("momentum", {"momentum": 0.9})]
)
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_training_resumes_from_a_checkpoint_to_the_same_weights(
    name: str, options: dict, layer_decay: float | None, tmp_path: Path
) -> None:
    def begin() -> TrainingState:
        task = TASKS["classify"](tiny(), target_of(5))
        arguments = {"lr": 1e-3, "weight_decay": 0.05, "options": options, "layer_decay": layer_decay}
        optimizer = make_optimizer(task, name=name, **arguments)
        return TrainingState(
            task, optimizer, grad_scaler(torch.device("cpu"), "fp32"), identity={"config": {}, "classes": ["a"]}
        )

    def step(state: TrainingState, seed: int) -> None:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        state.task(batch_of(images))["loss"].backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    whole = begin()
    for seed in range(3):
        step(whole, seed)
    halted, resumed = begin(), begin()
    for seed in range(2):
        step(halted, seed)
    write_tensors(tmp_path / "last.pt", halted.state_dict())
    resumed.load_state_dict(read_state(tmp_path / "last.pt"), "last.pt")
    step(resumed, 2)
    for key, value in resumed.task.state_dict().items():
        assert torch.equal(value, whole.task.state_dict()[key]), key


@pytest.mark.parametrize("change", [{"layer_decay": 0.75}, {"weight_decay": 0.0}, {"frozen": ["patch_embed"]}])
def test_optimizer_state_returns_to_its_parameter_when_the_groups_change(change: dict, tmp_path: Path) -> None:
    def begin(*, frozen: list[str], weight_decay: float, layer_decay: float | None) -> TrainingState:
        task = TASKS["classify"](tiny(), target_of(5))
        freeze(task.model, frozen)
        optimizer = make_optimizer(
            task, name="adamw", lr=1e-3, weight_decay=weight_decay, options={}, layer_decay=layer_decay
        )
        return TrainingState(
            task, optimizer, grad_scaler(torch.device("cpu"), "fp32"), identity={"config": {}, "classes": ["a"]}
        )

    settings = {"frozen": [], "weight_decay": 0.05, "layer_decay": None}
    before, after = begin(**settings), begin(**settings | change)
    before.task(batch_of(torch.randn(4, 3, 16, 16)))["loss"].backward()
    before.optimizer.step()
    write_tensors(tmp_path / "last.pt", before.state_dict())
    after.load_state_dict(read_state(tmp_path / "last.pt"), "last.pt")
    moments = {name: before.optimizer.state[p]["exp_avg"] for name, p in before.task.named_parameters()}
    trained = {name: p for name, p in after.task.named_parameters() if p.requires_grad}
    assert all(torch.equal(after.optimizer.state[p]["exp_avg"], moments[name]) for name, p in trained.items())
    after.task(batch_of(torch.randn(4, 3, 16, 16)))["loss"].backward()
    after.optimizer.step()
