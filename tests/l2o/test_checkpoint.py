"""Checkpoints: what goes in comes out, and what does not fit is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from l2o import checkpoint
from l2o.architectures.l2o_pa import L2OPA
from l2o.architectures.named import architectures
from l2o.architectures.small_fc import SmallFC
from l2o.architectures.tuned_adam import TunedAdam
from l2o.architectures.velo import Velo
from l2o.base import LearnedOptimizer, ThetaError, saved_fields
from l2o.checkpoint import CheckpointError, load, read_card, save

ALL = [TunedAdam(lr=0.1), SmallFC(hidden_size=3), Velo(8, 4), L2OPA(hidden_size=3, heads=("A",))]
HEADER = {"format_version": "1", "architecture": '"tuned_adam"', "arguments": "{}"}


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: type(o).__name__)
def test_round_trip(optimizer: LearnedOptimizer, tmp_path: Path) -> None:
    theta = optimizer.initial(5)
    save(tmp_path / "new" / "folder", optimizer, theta, {"seed": 5, "licence": "Apache-2.0"})
    loaded = load(tmp_path / "new" / "folder")
    assert loaded.optimizer == optimizer
    assert torch.equal(loaded.theta, theta)
    assert loaded.card["seed"] == 5
    assert loaded.card["meta_parameters"] == optimizer.size
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["card.json", "theta.safetensors"]


@pytest.mark.parametrize("in_mup", [True, False])
def test_the_tensors_alone_say_whether_they_are_for_mup(in_mup: bool, tmp_path: Path) -> None:
    save(tmp_path, TunedAdam(), torch.zeros(4), {"mup": in_mup})
    (tmp_path / checkpoint.CARD).unlink()
    assert load(tmp_path).card == {"mup": in_mup}
    older = load_file(tmp_path / checkpoint.TENSORS)
    save_file(older, tmp_path / checkpoint.TENSORS, HEADER)
    (tmp_path / checkpoint.CARD).write_text(json.dumps({"mup": in_mup}))
    assert load(tmp_path).card == {"mup": in_mup}
    (tmp_path / checkpoint.CARD).write_text(json.dumps({"mup": str(in_mup)}))
    with pytest.raises(CheckpointError, match=f"mup is '{in_mup}', expected true or false"):
        load(tmp_path)


def test_what_no_file_can_hold_is_given_again(tmp_path: Path) -> None:
    nominal = TunedAdam().rule(torch.zeros(4))
    save(tmp_path, SmallFC(nominal=nominal), SmallFC().initial())
    assert load(tmp_path).optimizer == SmallFC()
    assert load(tmp_path, nominal=nominal).optimizer == SmallFC(nominal=nominal)


def test_an_architecture_that_nobody_would_find_again(tmp_path: Path) -> None:
    class Mine(TunedAdam):
        pass

    with pytest.raises(CheckpointError, match=r"Mine of .*, expected one of .*, or a class at the"):
        save(tmp_path, Mine(), torch.zeros(4))


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"format_version": "2"}, {}, "format_version is 2, expected 1"),
        ({"architecture": '"adam"'}, {}, "architecture is 'adam', expected one of"),
        ({"arguments": '{"width": 3}'}, {}, "not a tuned_adam: .*width"),
        ({"arguments": '{"beta1": 2}'}, {}, "not a tuned_adam: beta1: got 2"),
        ({"arguments": "{"}, {}, "not a checkpoint"),
        ({"arguments": "[" * 100_000}, {}, "not a checkpoint"),
        ({"arguments": "[1]"}, {}, r"arguments: got \[1\], expected an object"),
        ({"format_version": "true"}, {}, "format_version is True, expected 1"),
        ({}, {"log_lr": torch.zeros(2)}, r"log_lr has shape \(2,\), expected \(\)"),
        ({}, {"log_lr": torch.tensor(torch.nan)}, "NaN or infinity in log_lr"),
        ({}, {"log_lr": torch.zeros((), dtype=torch.float64)}, "log_lr is torch.float64, expected"),
        ({}, {}, "does not say whether it is for muP, and has no card.json"),
        ({}, {"other": torch.zeros(1)}, "theta: got tensors .*other"),
    ],
)
def test_misfits_are_named(header: dict, tensors: dict, message: str, tmp_path: Path) -> None:
    good = TunedAdam().named(torch.zeros(4))
    metadata = HEADER | header
    save_file(
        {k: v.clone() for k, v in good.items()} | tensors, tmp_path / checkpoint.TENSORS, metadata
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"nominal": 3}, "arguments: got nominal, expected only hidden_size, .*, weight_decay$"),
        ({"step_mult": True}, "step_mult: got True, expected no true or false"),
        ({"hidden_layers": 10**6}, "hidden_layers: got 1000000, but the file has only 9 tensors"),
        ({"hidden_size": 10**30}, "not a small_fc: "),
    ],
)
def test_arguments_that_no_file_may_ask_for(
    argument: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path, SmallFC(), SmallFC().initial())
    written = {"architecture": '"small_fc"', "arguments": json.dumps(argument)}
    tensors = load_file(tmp_path / checkpoint.TENSORS)
    save_file(tensors, tmp_path / checkpoint.TENSORS, HEADER | written)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path)
    path = tmp_path / checkpoint.TENSORS
    save(tmp_path, TunedAdam(), torch.zeros(4))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path)
    save_file({"log_lr": torch.zeros(())}, path)
    with pytest.raises(CheckpointError, match="format_version is None"):
        load(tmp_path)
    (tmp_path / checkpoint.CARD).write_text("[1]")
    with pytest.raises(CheckpointError, match="got a JSON list"):
        read_card(tmp_path)


def test_unfit_theta_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ThetaError, match="NaN"):
        save(tmp_path / "a", TunedAdam(), torch.full((4,), torch.nan))
    with pytest.raises(ThetaError, match="one vector"):
        save(tmp_path / "a", TunedAdam(), torch.zeros(2, 4))
    with pytest.raises(ThetaError, match=r"got torch.float64, expected torch.float32"):
        save(tmp_path / "a", TunedAdam(), torch.zeros(4, dtype=torch.float64))
    assert not (tmp_path / "a").exists()


def test_a_crash_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, TunedAdam(), torch.zeros(4), {"score": 1})

    def crash(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, TunedAdam(), torch.ones(4), {"score": 2})
    loaded = load(tmp_path)
    assert torch.equal(loaded.theta, torch.zeros(4))
    assert loaded.card["score"] == 1


def test_the_card_is_readable_and_the_tensors_have_their_names(tmp_path: Path) -> None:
    save(tmp_path, SmallFC(), SmallFC().initial())
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["arguments"]["hidden_size"] == 4
    assert card["architecture"] == "small_fc"
    assert load_file(tmp_path / "theta.safetensors")["w0"].shape == (39, 4)


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.CARD])
def test_a_flipped_bit_is_noticed_or_without_effect(file: str, tmp_path: Path) -> None:
    """Of numbers, names, arguments and the card: never another optimizer in silence."""
    save(tmp_path, SmallFC(), SmallFC().initial(), {"mup": True, "score": 0.25})
    before = load(tmp_path)
    content, rng = (tmp_path / file).read_bytes(), random.Random(0)
    for _ in range(150):
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        (tmp_path / file).write_bytes(damaged)
        try:
            found = load(tmp_path)
        except CheckpointError:
            continue
        assert found.optimizer == before.optimizer, (place, bit)
        assert torch.equal(found.theta, before.theta), (place, bit)
        # A digest under another name checks nothing, and changes nothing.
        assert list(found.card.values()) == list(before.card.values()), (place, bit)


def test_a_checkpoint_without_digests_is_read(tmp_path: Path) -> None:
    save(tmp_path, SmallFC(), SmallFC().initial(), {"mup": True})
    before, path = load(tmp_path), tmp_path / checkpoint.TENSORS
    with safe_open(path, framework="pt") as opened:
        header = {name: text for name, text in opened.metadata().items() if name != "digests"}
    save_file(load_file(path), path, header)
    card = json.loads((tmp_path / checkpoint.CARD).read_text())
    (tmp_path / checkpoint.CARD).write_text(json.dumps(card | {"digest": "0"}))
    with pytest.raises(CheckpointError, match="whoever changed it on purpose leaves out its field"):
        load(tmp_path)
    del card["digest"]
    (tmp_path / checkpoint.CARD).write_text(json.dumps(card))
    assert torch.equal(load(tmp_path).theta, before.theta)


ABSURD = (10**400, -(10**400), 10**30, "NaN", "Infinity", "-Infinity", '"x"', "true", "[1]", "{}")
BY_FIELD = [
    (kind, f.name)
    for kind in architectures().values()
    for f in saved_fields(kind)
    if "bool" not in str(f.type) and f.name != "nominal"
]


@pytest.mark.parametrize(("kind", "field"), BY_FIELD)
def test_numbers_that_no_field_can_mean(kind: type, field: str, tmp_path: Path) -> None:
    """They are refused in one line, or the optimizer is one that can be used."""
    names = {kind: name for name, kind in architectures().items()}
    optimizer = kind()
    save(tmp_path, optimizer, optimizer.initial())
    path = tmp_path / checkpoint.TENSORS
    tensors = load_file(path)
    for value in ABSURD:
        arguments = f'{{"{field}": {value}}}'
        save_file(
            tensors, path, HEADER | {"architecture": f'"{names[kind]}"', "arguments": arguments}
        )
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_file_that_goes_while_it_is_read_is_said_in_one_line(tmp_path, monkeypatch):
    """safetensors opens a file, and torch opens it once more."""
    folder = tmp_path / "learned"
    checkpoint.save(folder, SmallFC(), SmallFC().initial(), {"mup": False})
    opened = torch.UntypedStorage.from_file

    def gone(path, **options):
        folder.rename(tmp_path / "away")
        return opened(path, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", gone)
    with pytest.raises(OSError, match=r"theta.safetensors: unable to open file") as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
