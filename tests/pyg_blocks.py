"""PyTorch Geometric's interaction block with the weights of ours: what an interaction is compared with."""

from __future__ import annotations

from torch.nn import functional as F
from torch_geometric.nn.models.dimenet import InteractionPPBlock

from networks.dimenet_layers import DimeNetPlusPlusConfig, TripletInteraction


def pyg_interaction(block: TripletInteraction, settings: DimeNetPlusPlusConfig) -> InteractionPPBlock:
    """Return PyG's block with these weights, and their precision."""
    sizes = (settings.hidden_channels, settings.int_emb_size, settings.basis_emb_size)
    bases = (settings.num_spherical, settings.num_radial)
    oracle = InteractionPPBlock(*sizes, *bases, settings.num_before_skip, settings.num_after_skip, F.silu)
    oracle.load_state_dict(block.state_dict())
    return oracle.to(block.lin.weight.dtype)
