"""SevenNet's convolution for CPUs: the same numbers from a few large products instead of several small ones for every path.

e3nn forms the tensor product of each edge path by path, and PyTorch runs back through every one of these steps. Here the harmonics
of an edge and the Clebsch-Gordan coefficients of all paths from one l make one matrix, which multiplies the features of that l at
once, channels innermost, and the gradient is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class _Path:
    """A path from the features of one l. rows: its K of the block's. weights, outputs: its places among all weights and outputs."""

    rows: slice
    weights: slice
    outputs: slice


@dataclass(frozen=True)
class _Block:
    """All paths from the features of one l, of which there are ``mul`` with ``size`` components each.

    features: their place in the features of a node. coupling: (J, I·K), from the J harmonics of an edge to a matrix from the I
    components of the features to the K of all paths.
    """

    features: slice
    mul: int
    size: int
    paths: tuple[_Path, ...]
    coupling: torch.Tensor

    def of_nodes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (N, I, u) among all of them (N, features)."""
        return x[:, self.features].view(-1, self.mul, self.size).transpose(1, 2).contiguous()


class _Convolve(torch.autograd.Function):
    """out[n, k, u] = Σ over edges e to n of w[e, path of k, u] Σ_i x[source of e, i, u] m[e, i, k], m = harmonics · coupling."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        harmonics: torch.Tensor,
        weight: torch.Tensor,
        edges: torch.Tensor,
        blocks: Sequence[_Block],
        width: int,
    ) -> torch.Tensor:
        """Return (N, width). x: (N, features). harmonics: (E, J). weight: (E, weights). edges: (2, E), to and from."""
        out, kept = x.new_empty(len(x), width), []
        for block in blocks:
            matrix = (harmonics @ block.coupling.to(x)).view(-1, block.size, block.paths[-1].rows.stop)
            source = block.of_nodes(x).index_select(0, edges[1])
            product = torch.bmm(matrix.transpose(1, 2), source)
            message = torch.empty_like(product)
            for path in block.paths:
                torch.mul(product[:, path.rows], weight[:, None, path.weights], out=message[:, path.rows])
            found = x.new_zeros(len(x), *message.shape[1:]).index_add_(0, edges[0], message)
            for path in block.paths:
                out[:, path.outputs] = found[:, path.rows].transpose(1, 2).flatten(1)
            kept += [matrix, source, product]
        ctx.save_for_backward(x, weight, edges, *kept)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, harmonics and weight."""
        x, weight, edges, *kept = ctx.saved_tensors
        of_x, of_harmonics, of_weight = torch.zeros_like(x), 0.0, torch.empty_like(weight)
        for k, block in enumerate(ctx.blocks):
            matrix, source, product = kept[3 * k : 3 * k + 3]
            of_nodes = x.new_empty(len(x), *product.shape[1:])
            for path in block.paths:
                of_nodes[:, path.rows] = of_out[:, path.outputs].view(len(x), block.mul, -1).transpose(1, 2)
            of_message = of_nodes.index_select(0, edges[0])
            for path in block.paths:
                of_weight[:, path.weights] = (of_message[:, path.rows] * product[:, path.rows]).sum(1)
                of_message[:, path.rows] *= weight[:, None, path.weights]
            of_source = torch.bmm(matrix, of_message)
            of_features = x.new_zeros(len(x), *of_source.shape[1:]).index_add_(0, edges[1], of_source)
            of_x[:, block.features] = of_features.transpose(1, 2).flatten(1)
            of_matrix = torch.bmm(source, of_message.transpose(1, 2))
            of_harmonics = of_harmonics + of_matrix.flatten(1) @ block.coupling.to(x).T
        return of_x, of_harmonics, of_weight, None, None, None


class FastConvolution(nn.Module):
    """The tensor product of nodes' features with the harmonics of edges, summed over the edges to each node.

    Args:
        product: e3nn's ``TensorProduct`` of SevenNet's ``IrrepsConvolution``: paths "uvu" with harmonics of one channel, each with
            weights and an output of its own.
    """

    def __init__(self, product: Any) -> None:
        from e3nn.o3 import wigner_3j

        super().__init__()
        harmonics, outputs = product.irreps_in2.slices(), product.irreps_out.slices()
        first_weight = [0]
        for instruction in product.instructions:
            first_weight.append(first_weight[-1] + instruction.path_shape[0])
        blocks = []
        for number, (mul, irrep) in enumerate(product.irreps_in1):
            paths, couplings, start = [], [], 0
            for instruction, weight in zip(product.instructions, first_weight, strict=False):
                if instruction.i_in1 != number:
                    continue
                l_filter, l_out = product.irreps_in2[instruction.i_in2].ir.l, product.irreps_out[instruction.i_out].ir.l
                rows = slice(start, start := start + 2 * l_out + 1)
                paths.append(_Path(rows, slice(weight, weight + mul), outputs[instruction.i_out]))
                coefficients = wigner_3j(irrep.l, l_filter, l_out, dtype=torch.float64).transpose(0, 1)
                couplings.append(coefficients.new_zeros(product.irreps_in2.dim, irrep.dim, 2 * l_out + 1))
                couplings[-1][harmonics[instruction.i_in2]] = instruction.path_weight * coefficients
            if paths:
                coupling = torch.cat(couplings, 2).flatten(1)
                blocks.append(_Block(product.irreps_in1.slices()[number], mul, irrep.dim, tuple(paths), coupling))
        self.blocks, self.width = tuple(blocks), product.irreps_out.dim

    def forward(self, x: torch.Tensor, harmonics: torch.Tensor, weight: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Return (N, outputs). x: (N, features). harmonics: (E, J). weight: (E, weights). edges: (2, E), to and from."""
        return _Convolve.apply(x, harmonics, weight, edges, self.blocks, self.width)


class _Layer(nn.Module):
    """SevenNet's ``IrrepsConvolution`` with a ``FastConvolution`` in it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight_nn, self.denominator = layer.weight_nn, layer.denominator
        self.convolution = FastConvolution(layer.convolution)
        self.keys = layer.key_x, layer.key_filter, layer.key_weight_input, layer.key_edge_idx

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Replace the features of the nodes by the sums of their messages."""
        key, key_filter, key_weight_input, key_edges = self.keys
        weight = self.weight_nn(data[key_weight_input])
        data[key] = self.convolution(data[key], data[key_filter], weight, data[key_edges]).div(self.denominator)
        return data


def use_fast_convolutions(model: nn.Module) -> int:
    """Replace the convolutions of a SevenNet model on a CPU, which cannot be trained then, and return how many there were."""
    from sevenn.nn.convolution import IrrepsConvolution

    layers = {name: layer for name, layer in model.named_children() if type(layer) is IrrepsConvolution}
    for name, layer in layers.items():
        setattr(model, name, _Layer(layer))
    return len(layers)
