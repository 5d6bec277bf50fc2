"""Roles without annotation, muP's three numbers, and rules scaled by them."""

import copy
import math
from dataclasses import dataclass, replace
from typing import cast

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from search.interpreter.population import Population
from search.zoo import ZOO
from tasks.cards import fingerprint
from tasks.data.loaders import digits, help_text
from tasks.families.autoencoder import Autoencoder
from tasks.families.conv import Conv
from tasks.families.linear import Logistic
from tasks.families.mlp import MLP
from tasks.families.module import ModuleTask
from tasks.families.transformer import Transformer
from tasks.inner.unroll import initial, start, unroll
from tasks.mup.coordinates import coordinate_check
from tasks.mup.groups import param_groups
from tasks.mup.roles import WidthError, compare, parts
from tasks.mup.scaling import Mup, mup, mup_at, scaled, update_multiplier
from tasks.oracles.hutchinson import hessian_every
from tasks.rng import draw
from tasks.types import Layout, Params, ParamSpec, StepInfo
from tests.tasks.room_of_families import others


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def text(width=16, **fields):
    return Transformer(width, 1, 2, help_text(8), 4, **fields)


FAMILIES = {"mlp": MLP(16, 2), "conv": Conv(8, 2), "text": text(), "autoencoder": Autoencoder(16)}

ROLES = {
    "mlp": {"input": "w0", "hidden": "w1", "output": "w2", "vector": "b0 b1 b2"},
    "conv": {
        "input": "kernel0",
        "hidden": "kernel1",
        "output": "readout",
        "vector": "bias0 bias1 readout_bias",
    },
    "text": {
        "input": "token position",
        "hidden": " ".join(f"block0.{n}" for n in ("query", "key", "value", "mix", "up", "down")),
        "output": "readout",
        "vector": " ".join(
            f"{norm}.{n}"
            for norm in ("block0.norm1", "block0.norm2", "norm")
            for n in ("gain", "bias")
        ),
    },
    "autoencoder": {"input": "w0 w2", "hidden": "", "output": "w1 w3", "vector": "b0 b1 b2 b3"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_our_families(family):
    task = mup(FAMILIES[family], base_width=8, zero_readout=False)
    found = {role: [] for role in ROLES[family]}
    for spec in task.layout.specs:
        found[spec.role].append(spec.name)
    expected = {role: sorted(names.split()) for role, names in ROLES[family].items()}
    assert {role: sorted(names) for role, names in found.items()} == expected


@pytest.mark.parametrize("task", others(FAMILIES.values(), "width"), ids=lambda task: task.name)
def test_other_families_with_a_width_have_roles(task):
    specs = mup(task).layout.specs
    assert {spec.role for spec in specs} <= {*ROLES["mlp"]}
    assert any(spec.role in ("input", "hidden") for spec in specs)


@pytest.mark.parametrize(
    ("family", "name", "fan_in"),
    [
        ("mlp", "w0", 64),
        ("mlp", "w1", 16),
        ("conv", "kernel0", 9),
        ("conv", "kernel1", 9 * 8),
        ("conv", "readout", 4 * 8),
        ("text", "token", help_text(8).vocabulary),
        ("text", "block0.down", 64),
    ],
)
def test_fan_in(family, name, fan_in):
    task = mup(FAMILIES[family], zero_readout=False)
    assert {spec.name: spec.fan_in for spec in task.layout.specs}[name] == fan_in


class Network(nn.Module):
    """A bit of everything: packed attention, positions, a rank-3 weight for einsum."""

    def __init__(self, width):
        super().__init__()
        self.token = nn.Embedding(11, width)
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.heads = nn.Parameter(torch.randn(width, 2, width // 2) * width**-0.5)
        self.readout = nn.Linear(width, 11)

    def forward(self, x):
        x = self.block(self.token(x) + self.position)
        return self.readout(torch.einsum("btw,whd->bthd", x, self.heads).flatten(2))


def convolutional(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.Conv2d(width, width, 3, groups=width),
        nn.ConvTranspose2d(width, 2 * width, 2),
        nn.Flatten(),
        nn.Linear(2 * width * 25, 10),
    )


def recurrent(width):
    return nn.LSTM(4, width)


MODULES = [
    (Network, torch.zeros(1, 5, dtype=torch.int64), "token position", "readout", "block heads"),
    (convolutional, torch.zeros(1, 1, 8, 8), "0 1", "4", "2"),
    (recurrent, torch.zeros(3, 1, 4), "weight_ih", "", "weight_hh"),
]


@pytest.mark.parametrize(("build", "x", "inputs", "outputs", "hidden"), MODULES)
def test_roles_of_any_module(build, x, inputs, outputs, hidden):
    narrow, wide = build(8), build(16)
    found = compare(
        dict(narrow.named_parameters()),
        dict(wide.named_parameters()),
        lambda params: functional_call(narrow, dict(params), (x,)),
        x,
    )
    matrices = {k: part.role for k, part in found.items() if narrow.get_parameter(k).ndim > 1}
    expected = {"input": inputs, "output": outputs, "hidden": hidden}
    for name, role in matrices.items():
        assert name.startswith(tuple(expected[role].split())), (name, role)
    vectors = {k for k in found if k not in matrices}
    assert all(found[name].role == "vector" for name in vectors)


X, HALF = torch.randn(1, 3), torch.tensor(0.5)
USES = {  # of w, of these sizes at width n, beside an activation h [1, n]
    "norm and direction": (
        "output",
        (5, None),
        lambda h, w: h @ torch.ops.aten._weight_norm(w, HALF, 0).T,
    ),
    "masked": ("output", (5, None), lambda h, w: h @ (w * torch.ones_like(w) * HALF).T),
    "unit rows": ("output", (5, None), lambda h, w: h @ functional.normalize(w).T),
    "joined": ("output", (5, None), lambda h, w: h @ torch.cat([w, -w]).T),
    "sum of products": ("output", (None,), lambda h, w: (h * w).sum(-1)),
    "bilinear": ("output", (5, None, 3), lambda h, w: functional.bilinear(h, X, w)),
    "added batches": ("output", (1, None, 5), lambda h, w: torch.addbmm(HALF, h[None], w)),
    "penalised": ("output", (5, None), lambda h, w: (h @ w.T).sum() + w.norm() + (w * w).sum()),
    "gain": ("vector", (None,), lambda h, w: (h * w).relu()),
    "weight of an input": ("input", (1, 3, None), lambda h, w: (X[..., None] * w) @ h.T),
    "gain, also summed": ("vector", (None,), lambda h, w: (k := h * w) / k.sum(-1, keepdim=True)),
    "gain before relu_": ("vector", (None,), lambda h, w: (h * w).relu_().sum(-1)),
    "gain of channels": ("input", (None, 1), lambda h, w: (h.T * w).sum(-1)),
    "written in place": ("vector", (None,), lambda h, w: h.clone().add_(w)),
    "normalised latents": (
        "input",
        (2, None),
        lambda h, w: functional.layer_norm(w, h.shape[-1:]) @ h.T,
    ),
    "single channels": (
        "input",
        (None, 1, 3),
        lambda h, w: functional.conv_transpose1d(h[..., None], w, groups=h.shape[-1]),
    ),
}


@pytest.mark.parametrize("name", USES)
def test_roles_of_what_is_no_plain_product(name):
    role, shape, use = USES[name]

    def params(width):
        return {"first": torch.randn(3, width), "w": torch.randn([n or width for n in shape])}

    found = compare(params(4), params(8), lambda p: use(X @ p["first"], p["w"]), X)
    assert (found["first"].role, found["w"].role) == ("input", role)
    if role == "output":
        assert found["w"].summed >= {shape.index(None)}


def test_a_parameter_that_others_weigh_is_data():
    """Queries that are learned, joined from two, through a residual block."""

    def params(width):
        sizes = {"first": (3, width), "block": (width, width), "a": (2, width), "b": (1, width)}
        return {name: torch.randn(size) for name, size in sizes.items()}

    def run(p):
        queries = torch.cat([p["a"], p["b"]])
        return (queries + (queries @ p["block"]).relu()) @ (X @ p["first"]).T

    found = compare(params(4), params(8), run, X)
    roles = {name: part.role for name, part in found.items()}
    assert roles == {"first": "input", "block": "hidden", "a": "input", "b": "input"}


def linears(*shapes):
    """A constructor of a chain of products with weights of the given sizes, as functions."""

    def params(width):
        return {f"w{k}": torch.randn(*shape(width)) for k, shape in enumerate(shapes)}

    def run(params):
        x = torch.ones(1, next(iter(params.values())).shape[0])
        for weight in params.values():
            x = x @ weight if weight.ndim == 2 else x
        return x

    return params, run


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([lambda w: (3, w), lambda w: (w, w * w), lambda w: (w * w, 2)], "w1: fits no role"),
        ([lambda w: (3, w), lambda w: (w, 64 // w)], "w1: some axes grow .* others shrink"),
        ([lambda w: (3, 4)], "width: got the same width twice"),
        ([lambda w: (3, w), lambda w: (w,) * (w // 4)], "w1: has 1 axes at one width, 2 at an"),
        ([lambda w: (3, w)] + [lambda w: (w, w)] * 2 + [lambda w: (w, w, w)], "w3: fits no role"),
    ],
)
def test_what_fits_no_role(shapes, message):
    params, run = linears(*shapes)
    with pytest.raises(WidthError, match=message):
        compare(params(4), params(8), run, ())


def test_tied_weights_fit_no_role():
    def run(params):
        x = params["w"][torch.tensor([0, 1])]
        return nn.functional.embedding(torch.tensor([1]), params["w"]), x @ params["w"].T

    with pytest.raises(WidthError, match=r"w: fits no role.*untied"):
        compare({"w": torch.randn(5, 4)}, {"w": torch.randn(5, 8)}, run, ())


def test_other_names_at_the_other_width():
    with pytest.raises(WidthError, match="only at one of the two widths there is: v"):
        compare(
            {"w": torch.ones(2)}, {"w": torch.ones(4), "v": torch.ones(1)}, lambda params: 0, ()
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mup(Logistic()), "no field width"),
        (lambda: mup(Autoencoder(16), 8, True), "zero_readout: got True for several outputs"),
        (lambda: mup(MLP(16, 2)).multipliers(degree=1), "degree: got 1 without a base width"),
        (lambda: parts(MLP(16), MLP(16)), "same width twice"),
        (lambda: mup(MLP(16), base_width=0), "width: got 0, expected a positive integer"),
    ],
)
def test_what_a_user_may_get_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_base_width_nothing_changes(family):
    plain = FAMILIES[family]
    task = mup(plain, plain.width, zero_readout=False)
    params = task.init(generator())
    assert all(p.equal(params[name]) for name, p in plain.init(generator()).items())
    batch = plain.data.batch("train", torch.arange(4))
    assert torch.equal(task.loss(params, batch), plain.loss(params, batch))
    assert set(task.multipliers().values()) == set(task.multipliers(degree=1).values()) == {1.0}


def test_the_table_relative_to_a_base_width():
    task = mup(MLP(64, 2), base_width=16, zero_readout=False)
    names = ("w0", "b0", "w1", "w2", "b2")
    assert [task.multipliers()[name] for name in names] == [1, 1, 1 / 4, 1, 1]
    assert [task.multipliers(degree=1)[name] for name in names] == [4, 4, 1, 4, 1]
    assert [task.multipliers(degree=2)[name] for name in names] == [16, 16, 4, 16, 1]
    params = task.init(generator())
    assert task.forward(params)["w2"].equal(params["w2"] / 4)
    assert set(task.forward(params)) == {"w2"}
    at_base = MLP(16, 2).init(generator())
    sizes = [float(params[n].std() / at_base[n].std()) for n in ("w0", "w1", "w2")]
    assert sizes == pytest.approx([1, 1 / 2, 1], rel=0.1)


def test_the_table_of_the_mulo_paper():
    task = mup(MLP(64, 2), zero_readout=False)
    assert [task.multipliers()[name] for name in ("w0", "b0", "w1", "w2")] == [1, 1, 1 / 64, 1]
    assert {spec.name: update_multiplier(spec) for spec in task.layout.specs} == task.multipliers()
    params = task.init(generator())
    assert float(params["w1"].std()) == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert float(params["w2"].std()) == pytest.approx(1, rel=0.1)
    assert task.forward(params)["w2"].equal(params["w2"] / 64)


def test_a_zero_readout_predicts_nothing():
    task = mup(text(32), base_width=16)
    batch = task.data.batch("train", torch.arange(4))
    loss = task.loss(task.init(generator()), batch)
    assert float(loss) == pytest.approx(math.log(help_text(8).vocabulary), rel=1e-5)


@pytest.mark.parametrize(("base", "scale"), [(16, 0.5), (64, 1.0), (None, 32**-0.5)])
def test_attention_logits_are_divided_by_the_head_size(base, scale):
    network = mup(text(64), base).task
    assert isinstance(network, Transformer)
    assert network.logit_scale == pytest.approx(scale)


def test_a_task_keeps_its_own_logit_scale_and_size_of_evaluation():
    network = mup(replace(text(64), logit_scale=3.0), 64).task
    assert isinstance(network, Transformer)
    assert network.logit_scale == 3

    class Judged(MLP):
        evaluation_size = 100

    assert mup(Judged(8)).evaluation_size == 100
    assert fingerprint(Judged(8)) != fingerprint(MLP(8))


def gpt_like(width):
    """All weights of standard deviation 0.02, at every width."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width))
    network.append(nn.Linear(width, 10))
    for p in network.parameters():
        nn.init.normal_(p, std=0.02)
    return network


def as_task(build):
    cross_entropy = nn.functional.cross_entropy

    def make(width):
        return ModuleTask(lambda: build(width), cross_entropy, digits(), 16, f"module-{width}")

    return make


def test_initial_values_that_ignore_the_width_are_corrected():
    task = mup_at(as_task(gpt_like), 128, base_width=32, zero_readout=False)
    sizes = [float(task.init(generator())[f"{k}.weight"].std()) for k in (1, 3, 4)]
    assert sizes == pytest.approx([0.02, 0.01, 0.02], rel=0.1)


def test_without_a_base_width_they_cannot_be():
    with pytest.raises(WidthError, match=r"3.weight: starts at width\^0 .* expected a base width"):
        mup_at(as_task(gpt_like), 32)


@dataclass(frozen=True)
class Descent:
    """Gradient descent, or by sign: rules of degree 1 and 0, with a factor an instance."""

    factor: torch.Tensor
    sign: bool = False

    def init(self, params):
        return {}

    def update(self, grads, state, params, info):
        step = grads.sign() if self.sign else grads
        step = step * self.factor[:, None] + info.weight_decay[:, None] * params.flat
        return info.lr[:, None] * step, state

    def select(self, index):
        return replace(self, factor=self.factor[index])


def test_scaled_multiplies_updates_but_not_decay():
    task = mup(MLP(8, 2), base_width=2, zero_readout=False)
    rule = scaled(Descent(torch.tensor([1.0, 2.0])), task.multipliers(degree=1))
    inner = start(task, rule, 2)
    grads = torch.ones_like(inner.params)
    info = StepInfo(0, 1, torch.tensor([0.1, 0.1]), torch.tensor([0.0, 3.0]), torch.zeros(2))
    updates, _ = rule.update(grads, {}, Params(inner.params, task.layout), info)
    views, weights = task.layout.views(updates), task.layout.views(inner.params)
    for name, multiplier in task.multipliers(degree=1).items():
        assert torch.allclose(views[name][0], torch.tensor(0.1 * multiplier))
        decayed = 0.2 * multiplier + 0.1 * 3.0 * weights[name][1]
        assert torch.allclose(views[name][1], decayed, atol=1e-6)


def test_scaled_selects_instances_with_its_rule():
    task = mup(MLP(8, 2), base_width=2)
    rule = scaled(Descent(torch.tensor([0.1, 0.2, 0.3])), update_multiplier)
    together = unroll(task, rule, instances=3, steps=4, lr=1.0, chunk=2)
    alone = unroll(task, rule.select(torch.tensor([2])), instances=1, steps=4, lr=1.0)
    torch.testing.assert_close(together.training[:, 2:], alone.training, rtol=1e-4, atol=1e-6)


def test_a_tensor_without_a_factor():
    rule = scaled(Descent(torch.ones(1)), {"w0": 1.0})
    with pytest.raises(ValueError, match="scale: got none for b0, w1, b1"):
        unroll(MLP(4), rule, instances=1, steps=1, lr=0.1)


def mlp(width):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width))
    network.append(nn.ReLU()).append(nn.Linear(width, 10))
    nn.init.zeros_(network.get_parameter("5.weight"))
    return network


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize(("degree", "lr"), [(0, 0.01), (1, 0.1)])
def test_param_groups_train_a_module_like_the_task(width, degree, lr):
    """A readout multiplier in the loss, or in the learning rate, is the same network."""
    task = mup_at(as_task(mlp), width, base_width=16)
    assert isinstance(task, Mup)
    rule = scaled(Descent(torch.ones(1), sign=degree == 0), task.multipliers(degree))
    run = unroll(task, rule, instances=1, steps=5, lr=lr, weight_decay=0.1)

    model, base = mlp(width), mlp(16)
    started = task.layout.views(initial(task, 1, 0)[0])
    model.load_state_dict(started)
    inputs = (torch.zeros(1, 1, 8, 8),)
    groups = param_groups(model, base, inputs, lr=lr, weight_decay=0.1, degree=degree)
    losses = []
    for step in range(5):
        x, y = task.data.batch("train", draw(0, step, task.data.size("train"), 16))
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.detach())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for group in groups:
                for p in group["params"]:
                    direction = p.grad.sign() if degree == 0 else p.grad
                    p -= group["lr"] * (direction + group["weight_decay"] * p)
    torch.testing.assert_close(torch.stack(losses), run.training[:, 0], rtol=2e-3, atol=1e-4)


def test_a_base_of_width_1():
    wide, narrow = mup(MLP(64, depth=1), base_width=1), mup(MLP(64, depth=1), base_width=2)
    roles = [[(s.name, s.role, s.fan_in) for s in task.specs.specs] for task in (wide, narrow)]
    assert roles[0] == roles[1]
    with pytest.raises(WidthError, match="expected a narrower network of width 2 or more"):
        param_groups(mlp(64), mlp(1), (torch.zeros(1, 64),), lr=1.0, absolute=True)


def test_groups_do_not_depend_on_whether_a_transformer_trains():
    def network(width):
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        return nn.Sequential(nn.Linear(5, width), layer, nn.Linear(width, 3))

    inputs, found = (torch.zeros(1, 4, 5),), []
    for mode in (True, False):
        models = [network(width).train(mode) for width in (32, 16)]
        groups = param_groups(models[0], models[1], inputs, lr=1.0)
        found.append([(group["lr"], len(group["params"])) for group in groups])
    assert found[0] == found[1]


def test_param_groups_of_whole_numbers():
    models = [mlp(width) for width in (8, 16)]
    for model in models:
        model.register_parameter("count", nn.Parameter(torch.tensor([3]), requires_grad=False))
    groups = param_groups(models[1], models[0], (torch.zeros(1, 64),), lr=0.5)
    assert sum(len(group["params"]) for group in groups) == 7


def test_param_groups_at_the_base_width():
    groups = param_groups(mlp(8), mlp(8), (torch.zeros(1, 64),), lr=0.5, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.5, 0.1, 6)]


def test_param_groups_leave_the_model_and_random_numbers_as_they_are():
    def build(width):
        layers = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 2)
        return nn.Sequential(*layers)

    model, base = build(4), build(8)
    before = copy.deepcopy((model.state_dict(), base.state_dict())), torch.get_rng_state()
    for narrow, wide in ((model, base), (base, model)):
        param_groups(narrow, wide, (torch.randn(5, 3, generator=torch.Generator()),), lr=1.0)
    after = (model.state_dict(), base.state_dict()), torch.get_rng_state()
    assert torch.equal(before[1], after[1])
    for one, other in zip(before[0], after[0], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_scaled_rules_get_what_their_rule_reads():
    class Curved(Descent):
        hessian_every = 3
        reads_loss = True

    for rule, every, reads in ((Curved, 3, True), (Descent, 0, False)):
        found = scaled(rule(torch.ones(1)), update_multiplier)
        assert hessian_every(found) == every
        assert found.reads_loss == reads


def test_layouts_without_roles_are_all_hidden_and_unscaled():
    layout = Layout((ParamSpec("w", (3, 4)),))
    assert [update_multiplier(spec) for spec in layout.specs] == [1.0]


# Shapes suffice -------------------------------------------------------------------------------


def built(build, width, device):
    with torch.device(device):
        return build(width)


def rates_of(build, wide, narrow, x):
    """The learning rate of each parameter."""
    model = built(build, 16, wide)
    groups = param_groups(model, built(build, 8, narrow), (x.to(narrow),), lr=1.0)
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(("wide", "narrow"), [("meta", "cpu"), ("cpu", "meta"), ("meta", "meta")])
@pytest.mark.parametrize(("build", "x"), [row[:2] for row in MODULES])
def test_groups_need_no_values(build, x, wide, narrow):
    assert rates_of(build, wide, narrow, x) == rates_of(build, "cpu", "cpu", x)


def test_groups_read_no_values_where_there_are_some():
    """Not even those of a network that could not run: NaN, or more than fits into memory."""
    model, base = nn.Linear(3, 8), nn.Linear(3, 4)
    nn.init.constant_(model.weight, math.nan)
    seen = []
    base.register_forward_hook(lambda module, given, output: seen.append(output.device.type))
    param_groups(model, base, (torch.ones(1, 3),), lr=1.0)
    assert seen == ["meta"]


class Choosing(nn.Linear):
    """Its forward pass reads a value."""

    def __init__(self, width):
        super().__init__(3, width)

    def forward(self, x):
        return super().forward(x if float(x.sum()) > 0 else -x)


def test_a_network_that_reads_values_runs_with_its_own():
    x = torch.ones(1, 3)
    assert rates_of(Choosing, "meta", "cpu", x) == {"weight": 1.0, "bias": 1.0}
    with pytest.raises(ValueError, match="base: got a network on the meta device that cannot run"):
        rates_of(Choosing, "cpu", "meta", x)


# Weights that are used twice ------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding that is the readout, too, and logits divided by the ratio of the widths."""

    def __init__(self, width, base=16):
        super().__init__()
        self.embedding = nn.Embedding(64, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.hidden = nn.Linear(width, width)
        self.ratio = width / base

    def forward(self, x):
        h = self.hidden((x.flatten(1) @ self.embedding.weight).relu()).relu()
        return h @ self.embedding.weight.T[:, :10] / self.ratio


def test_tied_weights_are_an_embedding_if_one_says_so():
    x = torch.zeros(1, 8, 8)
    with pytest.raises(WidthError, match=r"embedding.weight: .* or tied=True and a network that"):
        param_groups(Tied(64), Tied(16), (x,), lr=1.0)
    groups = param_groups(Tied(64), Tied(16), (x,), lr=1.0, tied=True)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 2), (0.25, 1)]


def test_tied_weights_are_told_apart_from_other_uses():
    """A gain that also reads out has no such way."""

    def run(params):
        h = X @ params["first"]
        return (h * params["w"]).relu(), h @ params["w"]

    narrow, wide = ({"first": torch.ones(3, n), "w": torch.ones(n)} for n in (4, 8))
    with pytest.raises(WidthError, match=r"w: fits no role"):
        compare(narrow, wide, run, X, tied=True)


def test_tied_weights_pass_the_coordinate_check():
    adam = Population.of([ZOO["adam"].program], torch.tensor([0]))
    found = coordinate_check(
        lambda width: mup_at(as_task(Tied), width, 16, tied=True),
        lambda task: scaled(adam, cast(Mup, task).multipliers()),
        (16, 64, 256),
        4,
        lr=1e-3,
    )
    assert max(found.ratios().values()) < 2


class Shared(nn.Module):
    """A value of four numbers that all heads share: it is copied to the width."""

    def __init__(self, width):
        super().__init__()
        self.inward = nn.Linear(64, width)
        self.value = nn.Linear(width, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.mix = nn.Linear(width, width)
        self.readout = nn.Linear(width, 10)

    def forward(self, x):
        h = self.inward(x.flatten(1)).relu()
        copies = (self.value(h) * self.gain).tanh().repeat(1, h.shape[1] // 4)
        return self.readout(h + self.mix(copies))


def test_what_is_copied_to_the_width_starts_between_readouts_and_hidden_weights():
    """An autoencoder's code is not, and starts as readouts do."""
    task = mup_at(as_task(Shared), 64, base_width=16)
    roles = {spec.name: spec.role for spec in task.layout.specs}
    assert (roles["value.weight"], roles["mix.weight"]) == ("output", "hidden")
    params, narrow = task.init(generator()), Shared(16)
    assert not params["readout.weight"].any()
    seen = task.forward(params)["value.weight"]
    ratio = float(seen.std()) / float(narrow.value.weight.std())
    assert ratio == pytest.approx(4**-0.75, rel=0.2)
    assert not any(part.shared for part in parts(Autoencoder(8), Autoencoder(16)).values())


def test_what_is_copied_to_the_width_passes_the_coordinate_check():
    adam = Population.of([ZOO["adam"].program], torch.tensor([0]))
    found = coordinate_check(
        lambda width: mup_at(as_task(Shared), width, 16),
        lambda task: scaled(adam, cast(Mup, task).multipliers()),
        (16, 64, 256),
        4,
        lr=1e-3,
    )
    assert max(found.ratios().values()) < 2
