"""muP for anyone's module: parameter groups whose learning rates suit its width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from tasks.mup.roles import Parts, WidthError, compare
from tasks.mup.scaling import update_multiplier, width_ratio


def param_groups(
    model: nn.Module,
    base: nn.Module,
    inputs: tuple[Any, ...],
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    degree: float = 0.0,
    absolute: bool = False,
    tied: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for ``torch.optim``: ``lr`` is the one that suits ``base``.

    ``base`` is the same network at the base width and ``inputs`` is what ``base(*inputs)`` takes.
    ``absolute``: count widths from one, as a learned optimizer that was meta-trained in muP does;
    ``base`` then is the network at any other width, and shows which axes grow.
    ``degree`` is that of the rule in the gradients: 0 for Adam and Lion, 1 for SGD, measured for
    any program by ``search.behaviour.degree``. A module has no forward multiplier, so the
    learning rate of its readout carries it (1/r for every degree). That is exact for rules whose
    steps do not depend on the size of parameters or gradients; the features of ``small_fc`` have
    small constants beside these, so its readout moves about a third more than in the muP task.
    Exact for it is a module that divides its readout by the fan-in, and a group of multiplier 1 for
    its weights. Decay is by ``lr * weight_decay`` of the weights, whatever the group.

    ``tied``: an embedding that is the readout's weight, too, counts as an embedding, so its rate is
    the base's; the network then has to divide its logits by how many times as wide as ``base`` it
    is (``absolute``: by its width), which no learning rate makes up for. It is refused otherwise.

    Shapes are all that is read: either network may be on the meta device, and the wider one is
    never copied. The narrower runs forward once without values, on the meta device, or with its own
    where it cannot run there.

    Yours to do: start the readout at zero and hidden weights at 1/sqrt(fan_in), torch's default,
    and divide attention logits by the head size, not by its square root. Raises WidthError where
    the two are not one network at two widths.
    """
    own, at_base = dict(model.named_parameters()), dict(base.named_parameters())
    same = [p.shape for p in own.values()] == [p.shape for p in at_base.values()]
    if same and not absolute:
        return [{"params": list(own.values()), "lr": lr, "weight_decay": weight_decay}]
    wider = sum(p.numel() for p in own.values()) >= sum(p.numel() for p in at_base.values())
    narrow, order = (base, (at_base, own)) if wider else (model, (own, at_base))
    found = _parts_of(narrow, order[0], order[1], inputs, tied)
    groups: dict[float, list[Tensor]] = {}
    for name, p in own.items():
        spec, small = (found[name].spec(name, tuple(q.shape)) for q in (p, at_base[name]))
        small = None if absolute else small
        multiplier = update_multiplier(spec, small, degree)
        if spec.role == "output":
            multiplier = 1 / width_ratio(spec, small)
        groups.setdefault(multiplier, []).append(p)
    return [
        {"params": params, "lr": lr * multiplier, "weight_decay": weight_decay / multiplier}
        for multiplier, params in groups.items()
    ]


def _parts_of(
    narrow: nn.Module,
    own: Mapping[str, Tensor],
    wide: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    tied: bool,
) -> Parts:
    """``compare`` for the parameters of ``narrow`` and of a wider module."""

    def found(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], given: Any) -> Parts:
        def run(p: Mapping[str, Tensor]) -> object:
            return functional_call(narrow, {**buffers, **p}, given)

        return compare(params, shapes, run, given, tied)

    shapes, buffers = _shapes(dict(wide)), dict(narrow.named_buffers())
    try:
        with torch.no_grad(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            return found(_shapes(dict(own)), _shapes(buffers), _shapes(inputs))
    except WidthError:
        raise
    except Exception as error:  # of any kind: a network may read values, or call what is no torch
        if any(p.is_meta for p in own.values()):
            said = str(error).partition("\n")[0]
            raise WidthError(
                f"base: got a network on the meta device that cannot run there ({said}), expected "
                "one with values at the smaller width"
            ) from error
    # A forward pass of a model in training moves statistics and random numbers: neither shall stay.
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.no_grad(), torch.random.fork_rng(_cuda(own.values())):
        return found(own, kept, inputs)


def _shapes(values: Any) -> Any:
    """The same, with tensors on the meta device, which have a shape and no values."""
    return tree_map_only(
        Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"), values
    )


def _cuda(tensors: Iterable[Tensor]) -> list[torch.device]:
    """The GPUs that they are on."""
    return list({x.device for x in tensors if x.device.type == "cuda"})
