"""Weight files: round trips, names, and every way in which a file is refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from learned_opt.errors import LearnedOptError
from learned_opt.rules import weights
from learned_opt.rules.base import get_rule
from learned_opt.rules.classic import SGD
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.rnnprop import RNNProp
from learned_opt.rules.weights import (
    list_rules,
    load_rule,
    read_metadata,
    resolve_rule,
    save_rule,
)

METADATA = {
    "description": "A small one",
    "tasks": ["octopus", "quadratic"],
    "horizon": 100,
    "seed": 3,
    "licence": "Apache-2.0",
    "scores": {"octopus": 0.5},
}


@pytest.fixture
def saved(tmp_path):
    rule = CoordinatewiseLSTM(hidden_size=5, num_layers=1, output_scale=0.02, seed=4)
    return rule, save_rule(rule, tmp_path / "small.safetensors", metadata=METADATA)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder that stands in for the bundled weights."""
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    return tmp_path


def header_of(path):
    return read_metadata(path)


def rewrite(path, *, drop=(), tensors=None, **changes):
    """Save the file again with another header or other tensors."""
    header = {k: v for k, v in header_of(path).items() if k not in drop} | changes
    save_file(load_file(path) if tensors is None else tensors, path, metadata=header)


def test_round_trip_keeps_theta_config_and_behaviour(saved):
    rule, path = saved
    loaded = load_rule(path)
    assert type(loaded) is CoordinatewiseLSTM
    assert loaded.config() == rule.config()
    assert not loaded.training
    assert all(not p.requires_grad for p in loaded.parameters())
    params = {"x": torch.linspace(-1, 1, 6).reshape(2, 3)}
    expected, _ = rule(params, rule.init(params), params)
    found, _ = loaded(params, loaded.init(params), params)
    assert torch.equal(found["x"], expected["x"])


def test_round_trip_keeps_the_type_of_theta(tmp_path):
    rule = RNNProp(seed=1).double()
    loaded = load_rule(save_rule(rule, tmp_path / "a.safetensors"))
    for (name, found), expected in zip(
        loaded.state_dict().items(), rule.state_dict().values(), strict=True
    ):
        assert found.dtype == torch.float64, name
        assert torch.equal(found, expected)


def test_a_sweep_round_trips(tmp_path):
    path = save_rule(SGD(learning_rate=torch.tensor([0.1, 0.2])), tmp_path / "a.safetensors")
    assert load_rule(str(path)).config() == SGD(learning_rate=torch.tensor([0.1, 0.2])).config()


def test_header_says_what_the_file_is(saved):
    _, path = saved
    header = read_metadata(path)
    assert header["format"] == "learned_opt"
    assert header["format_version"] == "1"
    assert header["rule"] == "lstm"
    assert json.loads(header["config"])["hidden_size"] == 5
    assert header["library_version"][0].isdigit()
    assert header["description"] == "A small one"
    assert json.loads(header["tasks"]) == ["octopus", "quadratic"]
    assert json.loads(header["horizon"]) == 100
    assert json.loads(header["scores"]) == {"octopus": 0.5}


def test_header_entries_that_nobody_gave_are_empty(tmp_path):
    header = read_metadata(save_rule(SGD(), tmp_path / "a.safetensors"))
    assert {header[k] for k in ("description", "tasks", "licence", "scores", "seed")} == {""}


def test_saving_is_atomic(saved, monkeypatch):
    rule, path = saved
    before = path.read_bytes()

    def full_disk(self, data):
        self.open("wb").close()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", full_disk)
        with pytest.raises(OSError, match="disk full"):
            save_rule(rule, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]


def test_saving_makes_folders_and_overwrites(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    save_rule(SGD(learning_rate=0.1), path)
    save_rule(SGD(learning_rate=0.2), path)
    assert load_rule(path).config() == {"learning_rate": 0.2}


def test_loading_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LearnedOptError, match="not a readable safetensors file"):
        load_rule(path)


def test_suffix_and_reserved_metadata_are_refused(tmp_path):
    with pytest.raises(LearnedOptError, match="path must end with"):
        save_rule(SGD(), tmp_path / "a.pt")
    with pytest.raises(LearnedOptError, match="metadata must not set config, rule"):
        save_rule(SGD(), tmp_path / "a.safetensors", metadata={"rule": "x", "config": "{}"})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LearnedOptError, match="no weight file at"):
        load_rule(tmp_path / "none.safetensors")
    with pytest.raises(LearnedOptError, match="no weight file at"):
        load_rule("no/such/file")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, size):
    _, path = saved
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LearnedOptError, match="not a readable safetensors file"):
        load_rule(path)


def test_a_corrupt_file_is_refused(saved):
    _, path = saved
    path.write_bytes(b"\xff" * 1000)
    with pytest.raises(LearnedOptError, match="not a readable safetensors file"):
        load_rule(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(LearnedOptError, match="its header does not say format='learned_opt'"):
        load_rule(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(LearnedOptError, match="its header does not say format='learned_opt'"):
        load_rule(path)


CASES = {
    "newer format": (
        {"format_version": "2"},
        r"written in format 2, newer than 1, the newest that this version",
    ),
    "no format version": (
        {"format_version": "one"},
        "format_version must be a number, got 'one'",
    ),
    "unknown rule": ({"rule": "lsmt"}, "unknown rule 'lsmt'; did you mean 'lstm'"),
    "config is not JSON": ({"config": "{"}, "its config does not build the rule 'lstm'"),
    "config is not a mapping": ({"config": "3"}, "its config does not build the rule 'lstm'"),
    "unknown setting": (
        {"config": '{"hidden_units": 5}'},
        "its config does not build the rule 'lstm'.*hidden_units",
    ),
    "bad value": (
        {"config": '{"hidden_size": -5}'},
        "its config does not build the rule 'lstm'.*hidden_size must be positive",
    ),
    "other shape": (
        {"config": '{"hidden_size": 6, "num_layers": 1}'},
        r"tensor 'head.weight' has shape \[1, 5\], but the rule 'lstm' of its config has \[1, 6\]",
    ),
    "missing tensor": (
        {"config": '{"hidden_size": 5, "num_layers": 2}'},
        "tensor 'lstm.bias1' has shape None, but",
    ),
    "other features": (
        {"feature_schema": "abc"},
        "trained on feature schema 'abc', but this version of the rule 'lstm' sees",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(saved, case):
    _, path = saved
    changes, message = CASES[case]
    rewrite(path, **changes)
    with pytest.raises(LearnedOptError, match=message) as caught:
        load_rule(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_config_is_refused(saved):
    _, path = saved
    rewrite(path, drop=["config"])
    with pytest.raises(LearnedOptError, match="its config does not build the rule 'lstm'"):
        load_rule(path)


def test_the_feature_schema_of_a_rule_is_checked(saved, monkeypatch):
    rule, path = saved
    monkeypatch.setattr(CoordinatewiseLSTM, "feature_schema", "v2", raising=False)
    with pytest.raises(LearnedOptError, match=r"trained on feature schema '\w+', but .* sees 'v2'"):
        load_rule(path)
    save_rule(rule, path)
    assert read_metadata(path)["feature_schema"] == "v2"
    assert load_rule(path).config() == rule.config()


def test_tensors_that_cannot_be_theta_are_refused(saved):
    _, path = saved
    tensors = load_file(path)
    rewrite(path, tensors=tensors | {"extra": torch.zeros(2)})
    with pytest.raises(LearnedOptError, match=r"tensor 'extra' has shape \[2\], but .* has None"):
        load_rule(path)
    rewrite(path, tensors=tensors | {"head.bias": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(LearnedOptError, match=r"tensor 'head.bias' is torch.int64, but"):
        load_rule(path)
    rewrite(path, tensors=tensors | {"head.bias": torch.tensor([torch.nan])})
    with pytest.raises(LearnedOptError, match=r"tensor 'head.bias' has values that are not finite"):
        load_rule(path)


def test_bundled_names(zoo):
    save_rule(SGD(learning_rate=0.25), zoo / "steady.safetensors", metadata={"description": "Hm"})
    save_rule(RNNProp(), zoo / "prop.safetensors")
    assert list_rules() == {"prop": "", "steady": "Hm"}
    assert load_rule("steady").config() == {"learning_rate": 0.25}
    assert read_metadata("prop")["rule"] == "rnnprop"
    with pytest.raises(
        LearnedOptError, match=r"unknown bundled rule 'stedy'; did you mean 'steady'"
    ):
        load_rule("stedy")


def test_an_empty_zoo_lists_nothing(zoo):
    del zoo
    assert list_rules() == {}


def test_every_bundled_file_loads():
    for name in list_rules():
        assert load_rule(name).training is False


def test_resolve_prefers_bundled_weights_and_falls_back_on_hand_made_rules(zoo):
    assert resolve_rule("adam").config() == get_rule("adam").config()
    assert all(not p.requires_grad for p in resolve_rule("adam").parameters())
    with pytest.raises(LearnedOptError, match="'rnnprop' is learned and has no bundled weights"):
        resolve_rule("rnnprop")  # an untrained network is nobody's wish
    with pytest.raises(LearnedOptError, match="unknown rule 'admw'; did you mean 'adamw'"):
        resolve_rule("admw")
    save_rule(RNNProp(seed=7), zoo / "rnnprop.safetensors")
    assert torch.equal(resolve_rule("rnnprop").head.weight, RNNProp(seed=7).head.weight)
    save_rule(SGD(learning_rate=0.75), zoo / "adam.safetensors")
    assert resolve_rule("adam").config() == {"learning_rate": 0.75}
    assert resolve_rule(zoo / "adam.safetensors").config() == {"learning_rate": 0.75}
    assert resolve_rule(str(zoo / "adam.safetensors")).config() == {"learning_rate": 0.75}
