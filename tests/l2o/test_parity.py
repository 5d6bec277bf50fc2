"""Runs recorded with the JAX originals (see ``data/README.md``), replayed step by step.

A replay is a trajectory: parameters and state are never corrected from the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from l2o.architectures.features import Block, blocks, normalizers, small_fc_features
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer
from tasks.mup.scaling import Scale
from tasks.types import Layout, Params, ParamSpec, State, StepInfo

DATA = Path(__file__).parent / "data"
STEPS = 5
SMALL_FC = {
    "adafac_mlp_lopt_default": SmallFC(),
    "adafac_mlp_lopt_edge_shapes": SmallFC(step_mult=0.01),
    "adafac_mlp_lopt_h32_sm01": SmallFC(hidden_size=32, step_mult=0.01),
    "mulo_adafac_mlp_lopt_h32": SmallFC(hidden_size=32, step_mult=0.01),
}
SMALL_VELO = Velo(lstm_size=32, bank_size=16)
VELO = {"velo_hyperv2_small": SMALL_VELO, "velo_hyperv2_small_edge_shapes": SMALL_VELO}
RUNS = SMALL_FC | VELO


@dataclass(frozen=True)
class Recording:
    """One file: its arrays, and how they map to ours."""

    arrays: dict[str, np.ndarray]
    layout: Layout
    theta: Tensor
    scale: Scale | None

    def flat(self, kind: str, step: int) -> Tensor:
        """``[1, n]``: "params" or "grads" of one step."""
        views = {
            spec.name: torch.from_numpy(self.arrays[f"{kind}.{spec.name}"][step][None])
            for spec in self.layout.specs
        }
        return self.layout.flatten(views)

    def info(self, step: int, instances: int = 1) -> StepInfo:
        loss = torch.full((instances,), float(self.arrays["losses"][step]))
        one = torch.ones(instances)
        return StepInfo(step, int(self.arrays["num_steps"]), one, 0 * one, loss)


@lru_cache
def recording(name: str) -> Recording:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    names = sorted(key.removeprefix("params.") for key in arrays if key.startswith("params."))
    layout = Layout(tuple(ParamSpec(n, arrays[f"params.{n}"].shape[1:]) for n in names))
    named = velo_theta(arrays) if name in VELO else small_fc_theta(arrays)
    theta = RUNS[name].flatten({k: torch.from_numpy(v) for k, v in named.items()})
    key = "model_state.mup_lrs_to_use."
    scale = {n: float(arrays[key + n]) for n in names} if key + names[0] in arrays else None
    return Recording(arrays, layout, theta, scale)


def small_fc_theta(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    theirs = {"factored_decays": "adafactor_decays"}
    decays = ("momentum_decays", "rms_decays", "factored_decays")
    theta = {name: arrays[f"theta.{theirs.get(name, name)}"] for name in decays}
    return theta | {k: arrays[f"theta.nn.top.{k}"] for k in ("w0", "b0", "w1", "b1", "w2", "b2")}


def velo_theta(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    theta = {k: arrays[f"theta.lstm_init_state.{k}"][0] for k in ("hidden", "cell")}
    theirs = {"mix0": "linear", "mix1": "linear_1", "mix2": "linear_2", "lstm": "rnn/linear"}
    theirs |= {"controls": "rnn_to_controls", "step_size": "step_size"}
    for ours, other in theirs.items():
        theta |= {f"{ours}.{k}": arrays[f"theta.rnn_params.{other}.{k}"] for k in "wb"}
    bank = "theta.ff_mod_stack.top."
    groups = [arrays[f"{bank}w0__{k}"] for k in range(14)]
    theta["bank.w0"] = np.concatenate(groups, axis=1)
    return theta | {f"bank.{k}": arrays[bank + k] for k in ("b0", "w1", "b1", "w2", "b2")}


def replay(
    optimizer: LearnedOptimizer, run: Recording, rows: int = 1
) -> Iterator[tuple[int, Tensor, State, Params]]:
    """After every step: its number, updates, state, and the parameters before it."""
    theta = run.theta if rows == 1 else run.theta.expand(rows, -1)
    rule = optimizer.rule(theta, run.scale)
    flat = run.flat("params", 0).expand(rows, -1)
    state = rule.init(Params(flat, run.layout))
    for step in range(STEPS):
        params = Params(flat, run.layout)
        grads = run.flat("grads", step).expand(rows, -1)
        updates, state = rule.update(grads, state, params, run.info(step, rows))
        yield step, updates, state, params
        flat = flat - updates


@pytest.mark.parametrize("name", RUNS)
def test_parameters_and_steps_are_the_originals(name: str) -> None:
    run = recording(name)
    before = [run.flat("params", step) for step in range(STEPS + 1)]
    steps = [a - b for a, b in pairwise(before)]
    rounding = 2**-24 * float(torch.cat(before).abs().max())  # of the recorded parameters
    tolerance = 1e-4 * float(torch.cat(steps).abs().max()) + rounding
    for step, updates, _, params in replay(RUNS[name], run):
        close(params.flat - updates, before[step + 1], 1e-6)
        close(updates, steps[step], tolerance)


def recorded_row(run: Recording, kind: str, name: str, step: int) -> Tensor:
    prefix = "state.fac_rolling"
    middle = "_features" if f"{prefix}_features.v_row.{name}" in run.arrays else ""
    return torch.from_numpy(run.arrays[f"{prefix}{middle}.v_{kind}.{name}"][step])


def factored_parts(state: State, block: Block) -> dict[str, Tensor]:
    """Our averages under the names and in the shapes of the original, decay first."""
    row, col = state["row"][0, :, block.row], state["col"][0, :, block.col]
    if block.axes is None:
        return {"diag": row.view(3, *block.shape)}
    d1, d0 = block.axes
    shapes = {"row": block.along(d0), "col": block.along(d1)}
    return {
        "row": row.view(3, *shapes["row"]).squeeze(d0 + 1),
        "col": col.view(3, *shapes["col"]).squeeze(d1 + 1),
    }


@pytest.mark.parametrize("name", RUNS)
def test_accumulators_are_the_originals(name: str) -> None:
    run = recording(name)
    for step, _, state, _ in replay(RUNS[name], run):
        m, v = run.layout.views(state["m"][0]), run.layout.views(state["v"][0])
        for spec, block in zip(run.layout.specs, blocks(run.layout), strict=True):
            recorded_m = torch.from_numpy(run.arrays[f"state.mom_rolling.m.{spec.name}"][step + 1])
            relative(m[spec.name], recorded_m.movedim(-1, 0))
            recorded_v = torch.from_numpy(
                run.arrays[f"state.rms_rolling.rms.{spec.name}"][step + 1]
            )
            relative(v[spec.name], recorded_v.movedim(-1, 0))
            for kind, ours in factored_parts(state, block).items():
                relative(ours, recorded_row(run, kind, spec.name, step + 1).movedim(-1, 0))


@pytest.mark.parametrize("name", SMALL_FC)
def test_features_are_the_originals(name: str) -> None:
    run = recording(name)
    for step, _, state, params in replay(SMALL_FC[name], run):
        ours = small_fc_features(run.flat("grads", step), state, params)
        scales = normalizers(ours, run.layout)
        for (spec, span), scale in zip(run.layout, scales, strict=True):
            recorded = torch.from_numpy(run.arrays[f"features.{spec.name}"][step])
            close(ours[0, :, span] * scale[0, :, None], recorded.reshape(-1, 28).mT, 1e-4)


@pytest.mark.parametrize("name", VELO)
def test_recurrent_states_are_the_originals(name: str) -> None:
    run = recording(name)
    pairs = {
        "hidden": "lstm_hidden_state.hidden",
        "cell": "lstm_hidden_state.cell",
        "loss_means": "loss_buffer.means",
        "loss_minima": "loss_buffer.running_min",
    }
    for step, _, state, _ in replay(VELO[name], run):
        for ours, theirs in pairs.items():
            relative(state[ours][0], torch.from_numpy(run.arrays[f"state.{theirs}"][step + 1]))


@pytest.mark.parametrize("name", RUNS)
def test_theta_one_an_instance_equals_runs_of_their_own(name: str) -> None:
    """Three instances with different theta: each like a run with that theta alone."""
    run, optimizer = recording(name), RUNS[name]
    noise = torch.randn(3, optimizer.size, generator=torch.Generator().manual_seed(1))
    theta = run.theta + 0.05 * noise
    together = trajectory(optimizer.rule(theta, run.scale), run, 3)
    alone = [trajectory(optimizer.rule(row, run.scale), run, 1) for row in theta]
    close(together, torch.cat(alone), 1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-5
    last_first = torch.tensor([2, 0])
    selected = trajectory(optimizer.rule(theta, run.scale).select(last_first), run, 2)
    close(selected, together[last_first], 1e-6)


def trajectory(rule, run: Recording, instances: int) -> Tensor:
    """The parameters ``[N, n]`` after all steps."""
    flat = run.flat("params", 0).repeat(instances, 1)
    state = rule.init(Params(flat, run.layout))
    for step in range(STEPS):
        grads = run.flat("grads", step).repeat(instances, 1)
        info = run.info(step, instances)
        updates, state = rule.update(grads, state, Params(flat, run.layout), info)
        flat = flat - updates
    return flat


@pytest.mark.parametrize("name", RUNS)
def test_own_clocks_equal_a_common_clock(name: str) -> None:
    """Step and horizon as ``[N]`` tensors mean the same as ints."""
    run, optimizer = recording(name), RUNS[name]
    rule = optimizer.rule(run.theta, run.scale)
    params = Params(run.flat("params", 0).repeat(2, 1), run.layout)
    grads = run.flat("grads", 0).repeat(2, 1)
    info = run.info(0, 2)._replace(step=7)
    clocks = info._replace(step=torch.tensor([7, 7]), horizon=torch.tensor([info.horizon] * 2))
    common, _ = rule.update(grads, rule.init(params), params, info)
    own, _ = rule.update(grads, rule.init(params), params, clocks)
    torch.testing.assert_close(own, common)
    moved = clocks._replace(step=torch.tensor([7, 0]))
    other, _ = rule.update(grads, rule.init(params), params, moved)
    torch.testing.assert_close(other[0], common[0])
    assert not torch.equal(other[1], common[1])


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def relative(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-6 of the largest entry: accumulators are averages, small beside it is small."""
    close(ours, theirs, 1e-6 * max(float(theirs.abs().max()), 1e-30))
