"""Minibatches as a function of (seed, step), and the two kinds of data set."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.arrays import Arrays, Text
from tasks.data.loaders import digits, help_text
from tasks.rng import draw
from tasks.types import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.integers(1, 2**31), st.integers(1, 99))
def test_draw_is_a_function_of_its_arguments_and_stays_in_range(seed, step, size, batch_size):
    index = draw(seed, step, size, batch_size)
    assert index.dtype == torch.int64
    assert index.shape == (batch_size,)
    assert int(index.min()) >= 0
    assert int(index.max()) < size
    assert torch.equal(index, draw(seed, step, size, batch_size))


def test_draw_broadcasts_and_ignores_the_global_generator():
    seeds, steps = torch.tensor([3, 5, 8]), torch.arange(7)
    torch.manual_seed(0)
    table = draw(seeds[:, None], steps, 100, 16)
    assert table.shape == (3, 7, 16)
    torch.manual_seed(1)
    for i, seed in enumerate(seeds.tolist()):
        for step in range(7):
            assert torch.equal(table[i, step], draw(seed, step, 100, 16))
    assert torch.equal(draw(seeds, torch.tensor([1, 2, 3]), 100, 16)[1], table[1, 2])


def test_draw_keeps_its_numbers_forever():
    assert draw(0, 0, 1000, 5).tolist() == [960, 658, 585, 450, 657]
    assert draw(2**40 + 7, 12345, 1000, 5).tolist() == [782, 990, 726, 156, 194]


@pytest.mark.parametrize("size", [7, 10, 100])
def test_draw_is_uniform(size):
    counts = torch.bincount(draw(1, torch.arange(2000), size, 50).flatten(), minlength=size)
    expected = 100_000 / size
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5  # five standard deviations


def test_draw_repeats_no_minibatch():
    """Neighbouring seeds, steps and both at once (seed + step would repeat) all differ."""
    keys = draw(torch.arange(-64, 64)[:, None], torch.arange(128), 2**31, 4).reshape(-1, 4)
    assert len(keys.unique(dim=0)) == len(keys)
    assert len(keys.unique()) > 0.9999 * keys.numel()


@pytest.mark.parametrize("lag", ["seed", "step", "lane", "both", "high"])
def test_neighbours_are_uncorrelated(lag):
    seeds, steps = torch.arange(200)[:, None], torch.arange(50)
    a = draw(seeds, steps, 2**31, 16)
    b = {
        "seed": draw(seeds + 1, steps, 2**31, 16),
        "step": draw(seeds, steps + 1, 2**31, 16),
        "lane": draw(seeds, steps, 2**31, 16).roll(1, dims=-1),
        "both": draw(seeds + 1, steps - 1, 2**31, 16),
        "high": draw(seeds + 2**32, steps, 2**31, 16),
    }[lag]
    pair = torch.stack([a.flatten(), b.flatten()]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / a.numel() ** 0.5


@pytest.mark.parametrize(("field", "size", "batch"), [("size", 0, 4), ("batch_size", 4, -3)])
def test_draw_names_the_wrong_argument(field, size, batch):
    with pytest.raises(ValueError, match=f"{field}: got {min(size, batch)}, expected a positive"):
        draw(0, 0, size, batch)


def test_text_splits_are_consecutive_blocks_and_rare_characters_share_a_symbol():
    text = "".join("abcdefghij"[i * i % 10] for i in range(2000)) + "\u00e9z"
    found = Text.of("squares", text, context=4)
    whole = "".join(found.decode(getattr(found, split)) for split in SPLITS)
    assert whole == text[:-2] + "\ufffd\ufffd"
    assert [len(getattr(found, split)) for split in SPLITS] == [1801, 100, 101]
    assert found.symbols == "\ufffd" + "".join(sorted(set(text[:-2])))


def test_arrays_compare_by_identity():
    assert digits() == digits()
    copy = Arrays("digits", digits().train, digits().validation, digits().test)
    assert copy != digits()
    assert len({copy, digits()}) == 2


@pytest.mark.parametrize("loader", [digits, help_text])
def test_moving_makes_one_copy(loader):
    found = loader().to("meta")
    assert found is loader().to("meta")
    assert found.to("meta") is found
    index = torch.zeros(2, dtype=torch.int64, device="meta")
    assert all(tensor.is_meta for tensor in found.batch("validation", index))


@pytest.mark.gpu
def test_devices_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    index = draw(torch.arange(50)[:, None], torch.arange(50), 2**31, 8, device="cuda")
    assert torch.equal(index.cpu(), draw(torch.arange(50)[:, None], torch.arange(50), 2**31, 8))
    assert digits().to("cuda") is digits().to("cuda")
    (there, _), (here, _) = (
        digits().to(device).batch("train", torch.arange(9, device=device))
        for device in ("cuda", "cpu")
    )
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize(
    "targets",
    [torch.rand(9), torch.zeros(9, dtype=torch.int32), torch.ones(9, 1, dtype=torch.bool)],
)
def test_targets_that_are_neither_classes_nor_real_numbers_are_refused(targets):
    split = torch.zeros(9, 2), targets
    with pytest.raises(ValueError, match=r"mine: got targets of torch.*; expected class numbers"):
        _ = Arrays("mine", split, split, split).outputs


def test_unequal_lengths_are_refused():
    pair = (torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"validation: got lengths \[3, 2\]"):
        Arrays("x", pair, (torch.zeros(3, 2), torch.zeros(2)), pair)
