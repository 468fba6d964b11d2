"""DenoisingEGNN: exact symmetries in float64, heads blind to the conditions, checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from models import DenoiserModelConfig, DenoisingEGNN, load_denoiser
from networks.checkpoints import CheckpointError, save_checkpoint
from networks.graph import graph_mean

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def model() -> DenoisingEGNN:
    torch.manual_seed(0)
    net = DenoisingEGNN(
        DenoiserModelConfig(hidden_channels=16, vector_channels=8, num_layers=2, num_timesteps=50, max_neighbors=12)
    )
    for layer in (net.edge_gates, net.node_gates, net.graph_gates):
        torch.nn.init.normal_(layer.weight, std=0.5)  # outputs of order one, so that a broken symmetry shows
    return net.double().eval()


@pytest.fixture
def sheets() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    sizes = torch.tensor([3, 1, 6])
    batch = torch.repeat_interleave(torch.arange(3), sizes)
    heights = torch.randn(10, generator=g, dtype=torch.float64)
    return {
        "atomic_numbers": torch.tensor([42, 16, 16, 6, 22, 22, 6, 8, 8, 9]),
        "frac_coords": torch.rand(10, 2, generator=g, dtype=torch.float64),
        "heights": heights - graph_mean(heights, batch, 3)[batch],
        "cell": torch.tensor([[[3.2, 0.0], [-1.6, 2.8]], [[2.5, 0.3], [0.2, 2.2]], [[3.1, -0.4], [0.7, 5.9]]], dtype=torch.float64),
        "batch": batch,
        "t": torch.tensor([3, 20, 45]),
        "delta_g": torch.tensor([0.1, float("nan"), -0.4], dtype=torch.float64),
        "e_hull": torch.tensor([0.0, 0.3, float("nan")], dtype=torch.float64),
    }


def outputs(model: DenoisingEGNN, sheets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    noise, properties = model(**sheets)
    return {**vars(noise), **vars(properties)}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], skip: tuple[str, ...] = ()) -> None:
    for name, value in first.items():
        if name not in skip:
            torch.testing.assert_close(second[name], value, rtol=0, atol=TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")


def test_outputs_are_not_trivial(model, sheets):
    out = outputs(model, sheets)
    for name in ("frac", "height", "lattice"):
        assert out[name].abs().max() > 1e-2, name
    assert out["delta_g"].std() > 1e-3


@pytest.mark.parametrize("reflect", [False, True])
def test_rotation_and_reflection_in_plane(model, sheets, reflect):
    """Fractional coordinates, heights and S do not notice how the cell lies in the plane."""
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    if reflect:
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert_equal(outputs(model, sheets), outputs(model, sheets | {"cell": sheets["cell"] @ turn}))


def test_flip_of_the_faces(model, sheets):
    first, second = outputs(model, sheets), outputs(model, sheets | {"heights": -sheets["heights"]})
    second["height"] = -second["height"]
    assert_equal(first, second)


def test_translation_in_plane_and_along_z(model, sheets):
    moved = sheets | {
        "frac_coords": sheets["frac_coords"] + torch.tensor([0.31, -0.87], dtype=torch.float64),
        "heights": sheets["heights"] + 4.2,
    }
    assert_equal(outputs(model, sheets), outputs(model, moved))


def test_wrapping(model, sheets):
    images = torch.randint(-3, 4, (10, 2), generator=torch.Generator().manual_seed(3))
    assert_equal(outputs(model, sheets), outputs(model, sheets | {"frac_coords": sheets["frac_coords"] + images}))


def test_permutation(model, sheets):
    order = torch.tensor([2, 0, 1, 3, 9, 5, 7, 4, 8, 6])
    permuted = sheets | {name: sheets[name][order] for name in ("atomic_numbers", "frac_coords", "heights")}
    first, second = outputs(model, sheets), outputs(model, permuted)
    for name in ("frac", "height"):
        first[name] = first[name][order]
    assert_equal(first, second)


@pytest.mark.parametrize("transform", [[[1, 1], [0, 1]], [[0, -1], [1, 0]], [[2, 1], [1, 1]], [[1, 0], [-2, 1]]])
def test_change_of_lattice_basis(model, sheets, transform):
    """L' = T L, F' = F T^-1: positions follow covariantly, heights and heads not at all; S itself depends on the basis."""
    matrix = torch.tensor(transform, dtype=torch.float64)
    changed = sheets | {"cell": matrix @ sheets["cell"], "frac_coords": sheets["frac_coords"] @ torch.linalg.inv(matrix)}
    first, second = outputs(model, sheets), outputs(model, changed)
    second["frac"] = second["frac"] @ matrix
    assert_equal(first, second, skip=("lattice",))


def test_sheets_of_a_batch_do_not_interact(model, sheets):
    whole = outputs(model, sheets)
    alone = {name: sheets[name][4:] for name in ("atomic_numbers", "frac_coords", "heights")}
    alone |= {name: sheets[name][2:] for name in ("cell", "t", "delta_g", "e_hull")} | {"batch": torch.zeros(6, dtype=torch.long)}
    part = outputs(model, alone)
    for name in ("frac", "height"):
        whole[name] = whole[name][4:]
    for name in ("lattice", "delta_g", "e_hull", "synth_logit"):
        whole[name] = whole[name][2:]
    assert_equal(whole, part)


def test_position_noise_has_zero_mean(model, sheets):
    out = outputs(model, sheets)
    assert graph_mean(out["frac"], sheets["batch"], 3).abs().max() < 1e-12
    assert graph_mean(out["height"], sheets["batch"], 3).abs().max() < 1e-12


def test_heads_do_not_see_the_conditions(model, sheets):
    conditions = [sheets[name].nan_to_num(0.2).requires_grad_() for name in ("delta_g", "e_hull")]
    noise, properties = model(**sheets | dict(zip(("delta_g", "e_hull"), conditions, strict=True)))
    for value in vars(properties).values():
        gradients = torch.autograd.grad(value.sum(), conditions, retain_graph=True, allow_unused=True)
        assert all(g is None or not g.any() for g in gradients)
    gradients = torch.autograd.grad(noise.frac.square().sum() + noise.lattice.sum(), conditions)
    assert all(g.abs().max() > 0 for g in gradients), "the noise branch must see the conditions"


def test_unknown_condition_is_the_null_token(model, sheets):
    nan = torch.full((3,), float("nan"), dtype=torch.float64)
    assert_equal(
        outputs(model, sheets | {"delta_g": nan, "e_hull": nan}), outputs(model, sheets | {"delta_g": None, "e_hull": None})
    )
    null = model.null.detach()
    assert (null[0] - null[1]).abs().max() > 1e-3


def test_gradient_of_the_heads_by_finite_differences(model, sheets):
    inputs = [sheets[name].clone().requires_grad_() for name in ("frac_coords", "heights", "cell")]

    def head(frac, heights, cell):
        encoded = model.encode(sheets["atomic_numbers"], frac, heights, cell, sheets["batch"], sheets["t"])
        return model.properties(encoded).delta_g.sum()

    gradients = torch.autograd.grad(head(*inputs), inputs)
    g = torch.Generator().manual_seed(5)
    directions = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in inputs]
    step = 1e-6
    with torch.no_grad():
        plus = head(*(x + step * d for x, d in zip(inputs, directions, strict=True)))
        minus = head(*(x - step * d for x, d in zip(inputs, directions, strict=True)))
    expected = float((plus - minus) / (2 * step))
    assert float(sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))) == pytest.approx(expected, rel=1e-5)


def test_no_atom_is_without_neighbours(model):
    """A noised cell can be far larger than the cutoff and its atoms far apart; two atoms can coincide."""
    cell = torch.tensor([[[40.0, 0.0], [3.0, 35.0]], [[3.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    frac = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.2, 0.2], [0.2, 0.2]], dtype=torch.float64)
    batch = torch.tensor([0, 0, 1, 1])
    heights = torch.zeros(4, dtype=torch.float64)
    encoded = model.encode(torch.tensor([6, 6, 7, 7]), frac, heights, cell, batch, torch.tensor([50, 50]))
    assert (encoded.edges.envelope != 0).any(1).all()
    assert all(torch.isfinite(value).all() for value in vars(model.noise(encoded)).values())


def test_checkpoint_rebuilds_model_and_schedule(model, sheets, tmp_path):
    path = tmp_path / "denoiser.pth"
    model.schedule.height_coefficients.copy_(torch.tensor([1.7, 0.2]))
    save_checkpoint(path, "denoiser", model.config, {"model": model.state_dict(), "step": 7})
    loaded, content = load_denoiser(path, "train it")
    assert content["step"] == 7
    assert torch.equal(loaded.schedule.height_coefficients, model.schedule.height_coefficients)
    assert torch.equal(loaded.schedule.alphas_cumprod, model.schedule.alphas_cumprod)
    assert_equal(outputs(model, sheets), outputs(loaded.double(), sheets), skip=())


def test_checkpoint_of_other_weights_is_refused(model, tmp_path):
    path = tmp_path / "denoiser.pth"
    weights = {name: value for name, value in model.state_dict().items() if name != "null"}
    save_checkpoint(path, "denoiser", model.config, {"model": weights})
    with pytest.raises(CheckpointError, match="train it"):
        load_denoiser(path, "train it")
    with pytest.raises(CheckpointError, match="denoiser checkpoint: no file"):
        load_denoiser(tmp_path / "absent.pth", "train it")
