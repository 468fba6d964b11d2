"""Official OCP checkpoints of DimeNet++."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_dimenet import energy, make_model, sheet_with_h

from models import DimeNetPlusPlus
from networks.checkpoints import CheckpointError, load_ocp_checkpoint


def emulated_ocp(path, model: DimeNetPlusPlus, normalizer: str = "target", prefix: str = "module.module.", **extra) -> None:
    state = {prefix + key: value for key, value in model.state_dict().items()}
    content = {
        "epoch": 20,
        "step": 1000.0,
        "state_dict": state | {prefix + key: value for key, value in extra.items()},
        "normalizers": {normalizer: {"mean": torch.tensor(-1.525913), "std": torch.tensor(2.279365)}},
        "config": {"model": "dimenetplusplus", "model_attributes": {"hidden_channels": 256}},
        "val_metrics": {"energy_mae": {"metric": np.float64(0.55), "total": 1.0, "numel": 2}},
    }
    torch.save(content, path)


@pytest.mark.parametrize("normalizer", ["target", "energy"])
@pytest.mark.parametrize("prefix", ["module.module.", "module.", ""])
def test_ocp_checkpoint_loads_strictly(tmp_path, normalizer, prefix):
    source = make_model("all")
    emulated_ocp(tmp_path / "ocp.pt", source, normalizer, prefix)
    torch.manual_seed(5)
    model = DimeNetPlusPlus(source.settings).double()
    assert not np.allclose(energy(model, sheet_with_h()), energy(source, sheet_with_h()))
    assert load_ocp_checkpoint(tmp_path / "ocp.pt", model) == pytest.approx((-1.525913, 2.279365))
    np.testing.assert_array_equal(energy(model, sheet_with_h()), energy(source, sheet_with_h()))


def test_ocp_checkpoint_with_wrong_keys_is_refused_by_name(tmp_path):
    model = make_model("all")
    emulated_ocp(tmp_path / "extra.pt", model, **{"output_blocks.9.lin.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unexpected output_blocks.9.lin.weight"):
        load_ocp_checkpoint(tmp_path / "extra.pt", model)
    emulated_ocp(tmp_path / "wide.pt", make_model("all", basis_emb_size=4))
    with pytest.raises(CheckpointError, match=r"lin_rbf1.weight is \(4, 6\), expected \(8, 6\)"):
        load_ocp_checkpoint(tmp_path / "wide.pt", model)
    with pytest.raises(CheckpointError, match="no file"):
        load_ocp_checkpoint(tmp_path / "missing.pt", model)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="state_dict"):
        load_ocp_checkpoint(tmp_path / "other.pt", model)
