"""Files on disk: what was written comes back; damage is named; a crash leaves the old or the new."""

import json
import os

import pytest
import torch
from bidistill import MF, UserError
from bidistill.files.tensors import save_tensors
from bidistill.models.kinds import config_of
from bidistill.runs.checkpoint import (
    MODEL_FORMAT,
    load_checkpoint,
    load_model,
    model_notes,
    save_checkpoint,
    save_model,
)
from safetensors.torch import save_file

from bdkernels import topk
from bdkernels.storage.mapped import mapping_of

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "step": torch.tensor(3.0)}


def test_round_trip_and_only_the_newest_is_kept(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    for epoch in range(3):
        save_checkpoint(folder, TENSORS | {"a": TENSORS["a"] + epoch}, {"epoch": epoch, "score": 0.1 + 0.2})
    tensors, state = load_checkpoint(folder)
    assert (state["epoch"], state["score"]) == (2, 0.1 + 0.2)
    assert torch.equal(tensors["a"], TENSORS["a"] + 2)
    assert tensors["b"].dtype == torch.bool
    assert tensors["step"].shape == ()
    assert len(os.listdir(folder)) == 2


def test_transposed_tensors_are_saved_as_they_look(tmp_path):
    save_checkpoint(tmp_path, {"t": TENSORS["a"].T}, {})
    assert torch.equal(load_checkpoint(tmp_path)[0]["t"], TENSORS["a"].T)


@pytest.mark.parametrize("crash_at", ["save_tensors", "write_record", "remove"])
def test_a_crash_while_saving_leaves_the_old_one(tmp_path, monkeypatch, crash_at):
    save_checkpoint(tmp_path, TENSORS, {"epoch": 1})

    def crash(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(f"bidistill.runs.checkpoint.{crash_at}", crash)
        with pytest.raises(MemoryError):
            save_checkpoint(tmp_path, {"a": torch.zeros(5)}, {"epoch": 2})
    tensors, state = load_checkpoint(tmp_path)
    new = crash_at == "remove"  # by then the new one is whole
    assert state["epoch"] == (2 if new else 1)
    assert torch.equal(tensors["a"], torch.zeros(5) if new else TENSORS["a"])
    save_checkpoint(tmp_path, TENSORS, {"epoch": 3})
    assert len(os.listdir(tmp_path)) == 2  # leftovers of the crash are gone


def tensor_file(folder):
    return next(folder.glob("tensors-*.safetensors"))


def test_damage_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*state\.json: .*start the run again"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, TENSORS, {})
    path = tensor_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        load_checkpoint(tmp_path)
    path.write_bytes(whole[:-1] + b"\x77")
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: there is no such file"):
        load_checkpoint(tmp_path)
    state = tmp_path / "state.json"
    for text in ("", '{"format": "bidis', "[1]"):
        state.write_text(text)
        with pytest.raises(UserError, match=r"state\.json"):
            load_checkpoint(tmp_path)
    state.write_text(json.dumps({"format": "bidistill checkpoint 1", "tensors": "a", "sha256": "b"}))
    with pytest.raises(UserError, match="damaged or of another version .*bidistill checkpoint 1"):
        load_checkpoint(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the folder .*file"):
        save_checkpoint(tmp_path / "file" / "checkpoint", TENSORS, {})


def test_models_round_trip(tmp_path):
    model = MF(4, 6, 3, seed=5)
    save_model(tmp_path / "deep" / "model.safetensors", model, split="abc")
    again = load_model(tmp_path / "deep" / "model.safetensors")
    assert config_of(again) == config_of(model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert model_notes(tmp_path / "deep" / "model.safetensors") == {"split": "abc"}


def test_files_that_are_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=r"cannot read the model .*model\.safetensors"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the model .*model\.safetensors"):
        load_model(path)
    save_file(TENSORS, path)
    with pytest.raises(UserError, match=r"model\.safetensors has no checksum"):
        load_model(path)
    save_model(path, MF(4, 6, 3))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"cannot read the model .*model\.safetensors"):
        load_model(path)
    metadata = {"format": MODEL_FORMAT, "model": json.dumps(config_of(MF(4, 6, 3))), "notes": "{}"}
    save_tensors(path, {"user_factors.weight": torch.zeros(2, 2)}, metadata)
    with pytest.raises(UserError, match="does not hold the tensors of its model"):
        load_model(path)


def test_a_model_with_mapped_tables(tmp_path):
    """The same answers and no memory of its own: not a number of it is read when it is loaded."""
    path = tmp_path / "model.safetensors"
    model = MF(40, 60, 3, seed=5)
    save_model(path, model)
    mapped = load_model(path, mapped=True)
    assert config_of(mapped) == config_of(model) and all(mapping_of(p) is not None for p in mapped.parameters())
    users = torch.tensor([7, 3, 3, 39])
    want, got = model.factors(users), mapped.factors(users)  # type: ignore[attr-defined]
    assert torch.equal(want.user_factors, got.user_factors) and mapping_of(got.user_factors) is None
    assert mapping_of(got.item_factors) is not None and mapping_of(got.item_bias) is not None
    assert all(map(torch.equal, topk(want, 9), topk(got, 9)))
    assert torch.equal(model.score(users, users[:, None]), mapped.score(users, users[:, None]))
    with pytest.raises(RuntimeError):
        mapped.load_state_dict(model.state_dict())


def test_tables_that_cannot_be_mapped(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, MF(4, 6, 3).double())
    with pytest.raises(UserError, match=r"cannot map the tables of the model \(.* got F64\); load it without"):
        load_model(path, mapped=True)
    metadata = {"format": MODEL_FORMAT, "model": json.dumps(config_of(MF(4, 6, 3))), "notes": "{}"}
    save_tensors(path, {"user_factors.weight": torch.zeros(2, 2)}, metadata)
    with pytest.raises(UserError, match="does not hold the tensors of its model"):
        load_model(path, mapped=True)
    with pytest.raises(UserError, match="cannot read the model"):
        load_model(tmp_path / "none", mapped=True)
