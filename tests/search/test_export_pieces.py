"""On a CPU exported rules go through its cache piece by piece, and no number may show it."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from search.export.build import to_class
from search.language.program import Program, parse
from search.zoo import NAMED, ZOO

LR, DECAY = 0.01, 0.1
NORMED = """
def update(w, g, m, t):
    m = interp(g, m, 0.9)
    size = norm(m)
    x = m / size
    update = x / t
    return update, m
"""
CUT = {name: ZOO[name].program for name in ("lion", "adan", "adamw_initial")}
CUT |= {"curved": NAMED["sophia"].program, "normed": parse(NORMED), "muon": ZOO["muon"].program}


def in_blocks(
    program: Program, block: int, dtype: torch.dtype, lr: float | Tensor, foreach: bool = True
) -> list[Tensor]:
    """The parameters after three steps, one of them with gradients that are not contiguous."""
    exported: Any = to_class(program, "rule", f"in blocks of {block}", LR, DECAY)
    sys.modules[exported.__module__].__dict__["BLOCK"] = block
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 7), (), (2,), (5, 4), (16,), (1, 9))
    params = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    optimizer: Any = exported(params, lr=lr, foreach=foreach)
    for _ in range(3):
        if "h" in program.inputs:
            optimizer.set_hessian(sum((p**3).sum() for p in params), generator)
        for p in params:
            grad = torch.randn(p.shape[::-1], generator=generator).to(dtype)
            p.grad = grad.permute(tuple(reversed(range(p.ndim))))
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("lr", [LR, torch.tensor([LR])], ids=["float", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CUT)
def test_pieces_make_no_difference(name: str, dtype: torch.dtype, lr: float | Tensor) -> None:
    """On a CPU large tensors are cut for its cache."""
    whole, cut = (in_blocks(CUT[name], block, dtype, lr) for block in (10**6, 8))
    assert all(torch.equal(x, y) for x, y in zip(whole, cut, strict=True))
    one_by_one = in_blocks(CUT[name], 8, dtype, lr, foreach=False)
    tolerance: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(one_by_one, whole, **tolerance)


@pytest.mark.parametrize(("name", "sizes"), [("lion", [8, 7, 4, 8, 8, 1]), ("normed", [15, 4, 17])])
def test_pieces_fit_unless_a_rule_needs_whole_tensors(name: str, sizes: list[int]) -> None:
    module = sys.modules[to_class(CUT[name], name, "sizes").__module__].__dict__
    module["BLOCK"] = 8
    params = [torch.zeros(3, 5), torch.zeros(4), torch.zeros(17)]
    pieces = [*module["_pieces"](params, [p + 1 for p in params], [2.0, 3.0, 4.0])]
    assert [sum(p.numel() for p in piece[0]) for piece in pieces] == sizes
    steps = [t for piece in pieces for t in piece[2]]
    assert steps == ([2.0, 2.0, 3.0, 4.0, 4.0, 4.0] if name == "lion" else [2.0, 3.0, 4.0])
    for x in (x for piece in pieces for x in piece[0]):
        x.add_(1)
    assert all((p == 1).all() for p in params)
