"""The distributed half of the optimizer contract: a script, run by ``test_optimizer_contract.py``.

Two processes (gloo, CPU) train the same small model under DDP, FSDP2 and ZeroRedundancyOptimizer
and through a distributed checkpoint, with every rule; each result has to equal that of one process.
Writes ``results.json`` into the folder it is given: an empty string or what went wrong.
"""

import importlib.util
import json
import os
import socket
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from search.interpreter.population import Population
from search.interpreter.reference import reference
from search.zoo import ZOO
from tasks.optim.rule_optimizer import RuleOptimizer

Make = Any  # an optimizer class, or a function that makes one
STEPS = 3


def reference_rule(params: Any, **settings: Any) -> Optimizer:
    rule = Population.of([ZOO["adam"].program], torch.tensor([0]), reference)
    return RuleOptimizer(params, rule, 0.05, **settings)


def exported(path: Path) -> Make:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    module.__dict__["BLOCK"] = 1  # or fused=True would find nothing worth compiling
    classes = (x for x in vars(module).values() if isinstance(x, type))
    return next(x for x in classes if x.__module__ == path.stem)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def train(net: nn.Module, optimizer: Optimizer, steps: range, half: int | None = None) -> None:
    """``half``: the part of each batch that this process sees; None for all of it."""
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        net(x if half is None else x[4 * half : 4 * half + 4]).square().mean().backward()
        optimizer.step()


def weights(net: nn.Module) -> Tensor:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in whole])


def expected(make: Make, steps: int = STEPS) -> Tensor:
    net = model()
    train(net, make(net.parameters()), range(steps))
    return weights(net)


def assert_equal(net: nn.Module, make: Make, steps: int = STEPS) -> None:
    torch.testing.assert_close(weights(net), expected(make, steps), rtol=1e-5, atol=1e-6)


def ddp(make: Make, rank: int, folder: Path) -> None:
    net = DistributedDataParallel(model())
    train(net, make(net.parameters()), range(STEPS), half=rank)
    assert_equal(net, make)


def zero(make: Make, rank: int, folder: Path) -> None:
    net = DistributedDataParallel(model())
    train(net, ZeroRedundancyOptimizer(net.parameters(), make), range(STEPS), half=rank)
    assert_equal(net, make)


def sharded() -> Any:
    net, mesh = model(), init_device_mesh("cpu", (2,))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def fsdp2(make: Make, rank: int, folder: Path) -> None:
    for settings in ({}, {"foreach": True}, {"fused": True}):
        if make is reference_rule and settings:
            continue
        net = sharded()
        train(net, make(net.parameters(), **settings), range(STEPS), half=rank)
        assert_equal(net, make)


def checkpoint(make: Make, rank: int, folder: Path) -> None:
    net = sharded()
    optimizer = make(net.parameters())
    train(net, optimizer, range(2), half=rank)
    save(get_optimizer_state_dict(net, optimizer), checkpoint_id=str(folder))
    net.zero_grad()  # torch prepares the states to load into only where there are no gradients
    resumed = make(net.parameters())
    before = weights(net)
    state = get_optimizer_state_dict(net, resumed)
    assert torch.equal(weights(net), before), "preparing to load moved the parameters"
    load(state, checkpoint_id=str(folder))
    set_optimizer_state_dict(net, resumed, state)
    train(net, resumed, range(2, 4), half=rank)
    assert_equal(net, make, 4)


def run(rank: int, folder: Path, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")  # traced as for a compiler, but faster
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rules = {path.stem.removeprefix("exported_"): exported(path) for path in folder.glob("*.py")}
    results = {}
    for name, make in {**rules, "reference": reference_rule}.items():
        for promise in (ddp, fsdp2, checkpoint, zero):
            key = f"{promise.__name__}-{name}"
            try:
                promise(make, rank, folder / key)
                results[key] = ""
            except Exception:
                results[key] = traceback.format_exc()
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, so that torch is imported once.
    start_processes(run, (folder, port), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
