"""Every data set against every property it must have: fixed, disjoint, standardised."""

import numpy as np
import pytest
import torch

from tasks.data import cifar, loaders
from tasks.data.arrays import Arrays, Text
from tasks.data.fetch import DataMissing
from tasks.data.loaders import DATASETS, permutation
from tasks.types import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEXTS = ["help_text", "python_source", "sotu", "king_james"]
ARRAYS = [name for name in DATASETS if name not in TEXTS]


def load(name):
    try:
        return DATASETS[name]()
    except DataMissing as error:
        pytest.skip(str(error))


def test_every_data_set_has_a_licence():
    assert loaders.LICENCES.keys() == DATASETS.keys()


def test_permutation_is_one():
    assert torch.equal(permutation(1000).sort().values, torch.arange(1000))
    assert not torch.equal(permutation(1000), torch.arange(1000))


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


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "digit_halves"])
def test_inputs_are_standardised_by_the_training_split(name):
    found = load(name)
    assert isinstance(found, Arrays)
    inputs = found.train[0]
    assert inputs.dtype == torch.float32
    columns = inputs.flatten(1) if inputs.ndim == 2 else inputs.reshape(-1, 1)
    torch.testing.assert_close(columns.mean(0), torch.zeros(columns.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(columns.std(0), torch.ones(columns.shape[1]), atol=2e-3, rtol=0)
    assert abs(float(found.test[0].std()) - 1) < 0.2


def test_digit_halves_are_the_digits_cut_in_two():
    whole, halves = load("digits"), load("digit_halves")
    for split in SPLITS:
        index = torch.arange(whole.size(split))
        upper, lower = halves.batch(split, index)
        assert torch.equal(torch.cat([upper, lower], 1), whole.batch(split, index)[0].flatten(1))


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
    parts = loaders._shuffle(numbers, numbers)
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


def test_helptext_context_is_a_choice():
    assert loaders.help_text(16).batch("train", torch.tensor([0]))[0].shape == (1, 16)


def test_status_tells_what_is_missing(tmp_path, monkeypatch):
    assert loaders.status("digits") == "ready"
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    loaders.mnist.cache_clear()
    assert loaders.status("mnist") == "mnist: not on this machine; `l2o data fetch mnist` gets it"


@pytest.mark.parametrize("name", ["mnist5k", "sotu", "king_james"])
def test_a_missing_package_names_the_command(name, monkeypatch):
    def refuse(module):
        raise ImportError(module)

    monkeypatch.setattr(loaders, "import_module", refuse)
    with pytest.raises(DataMissing, match=rf"{name}: .*pip install 'l2o\[data\]'"):
        getattr(loaders, name).__wrapped__()


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
