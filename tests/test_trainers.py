"""Rules in the trainers that people have: each trains, saves, resumes to the same trajectory.

Needs ``pip install -c constraints.txt -e '.[test,trainers]'``; a trainer that is not there is
skipped. Lightning, Transformers and timm import torchvision if it is installed, and fail with one
that was built for another torch: take both from the same index.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from l2o.architectures.small_fc import SmallFC
from l2o.loading import Learned
from search.export.build import to_class
from search.zoo import ZOO
from tasks.optim.rule_optimizer import RuleOptimizer

RULES = ("lion", "adan", "learned")
LEARNED = Learned("small", SmallFC(hidden_size=4), SmallFC(hidden_size=4).initial(1), {})
rules = pytest.mark.parametrize("rule", RULES)


def optimizer_of(rule: str, params: Iterable[Any]) -> Optimizer:
    if rule == "learned":
        return LEARNED.optimizer(params, weight_decay=0.01, horizon=8)
    return ZOO[rule].optimizer(params, lr=0.01, weight_decay=0.01)


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def loader() -> DataLoader:
    return DataLoader(data(), batch_size=8)  # four steps an epoch


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def same(resumed: nn.Module, uninterrupted: nn.Module) -> None:
    assert not torch.equal(weights(uninterrupted), weights(model()))
    torch.testing.assert_close(weights(resumed), weights(uninterrupted), rtol=0, atol=0)


@rules
def test_plain_torch(rule: str, tmp_path: Path) -> None:
    def epoch(net: nn.Module, optimizer: Optimizer, scheduler: CosineAnnealingLR) -> None:
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
        scheduler.step()

    def begin() -> tuple[nn.Module, Optimizer, CosineAnnealingLR]:
        net = model()
        optimizer = optimizer_of(rule, net.parameters())
        return net, optimizer, CosineAnnealingLR(optimizer, 2)

    one = begin()
    epoch(*one)
    torch.save([part.state_dict() for part in one], tmp_path / "saved.pt")
    epoch(*one)
    other = begin()
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    for part, state in zip(other, saved, strict=True):
        part.load_state_dict(state)
    epoch(*other)
    same(other[0], one[0])


@rules
def test_lightning(rule: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="needs the extra [trainers]")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(rule, self.parameters())
            return [optimizer], [CosineAnnealingLR(optimizer, 2)]

    def fit(module: Module, epochs: int, ckpt_path: str | None = None) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader(), ckpt_path=ckpt_path)
        return trainer

    whole, half, resumed = Module(), Module(), Module()
    fit(whole, 2)
    fit(half, 1).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, 2, str(tmp_path / "half.ckpt"))
    same(resumed.net, whole.net)


@rules
def test_hugging_face_trainer(rule: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra [trainers]")
    pytest.importorskip("accelerate", reason="needs the extra [trainers]")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.mse_loss(self.net(x), labels)}

    if rule == "learned":
        kind: type[Optimizer] = RuleOptimizer  # the trainer wants a class
        rule_of = LEARNED.architecture.rule(LEARNED.theta)
        settings: dict[str, Any] = {"rule": rule_of, "lr": 1.0, "weight_decay": 0.01}
    else:
        kind = to_class(ZOO[rule].program, rule, "")
        settings = {"lr": 0.01, "weight_decay": 0.01}
    rows = [{"x": x, "labels": y} for x, y in data()]

    def train(net: nn.Module, resume: str | bool) -> None:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            save_strategy="epoch",
            learning_rate=settings["lr"],
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            net, arguments, train_dataset=rows, optimizer_cls_and_kwargs=(kind, settings)
        )
        trainer.train(resume_from_checkpoint=resume)

    whole, resumed = Net(), Net()
    train(whole, False)
    train(resumed, str(tmp_path / "out" / "checkpoint-4"))
    same(resumed.net, whole.net)


@rules
def test_accelerate(rule: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs the extra [trainers]")

    def begin() -> tuple[Any, nn.Module, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True)
        net = model()
        prepared = accelerator.prepare(net, optimizer_of(rule, net.parameters()), loader())
        return accelerator, *prepared

    def epoch(accelerator: Any, net: nn.Module, optimizer: Any, batches: Any) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(net(x), y))
            optimizer.step()

    one = begin()
    epoch(*one)
    one[0].save_state(str(tmp_path / "half"))
    epoch(*one)
    other = begin()
    other[0].load_state(str(tmp_path / "half"))
    epoch(*other)
    same(other[1], one[1])


def test_timm(tmp_path: Path) -> None:
    """Registered under a name (timm splits names at underscores), in timm's parameter groups."""
    registry = pytest.importorskip("timm.optim", reason="needs the extra [trainers]")
    kind = to_class(ZOO["lion"].program, "lion", "")
    info = registry.OptimInfo("l2olion", kind, description="ours", has_betas=False)
    registry._optim_factory.default_registry.register(info)

    def make(net: nn.Module) -> Optimizer:
        return registry.create_optimizer_v2(net, "l2olion", lr=0.01, weight_decay=0.1)

    def epoch(net: nn.Module, optimizer: Optimizer) -> None:
        for x, y in loader():
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()

    one = model()
    optimizer = make(one)
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    epoch(one, optimizer)
    torch.save((one.state_dict(), optimizer.state_dict()), tmp_path / "saved.pt")
    epoch(one, optimizer)
    other = model()
    resumed = make(other)
    for part, state in zip((other, resumed), torch.load(tmp_path / "saved.pt"), strict=True):
        part.load_state_dict(state)
    epoch(other, resumed)
    same(other, one)
