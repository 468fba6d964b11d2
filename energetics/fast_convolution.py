"""SevenNet's interactions for CPUs: the same numbers from loops that numba compiles and a few products of matrices.

e3nn forms the tensor product of each edge path by path, writes every step to memory and runs back through it; its linear layers and
gates are dozens of small operations. Here the features of each l are a tensor of their own, (nodes, 2l + 1, channels). The
harmonics of an edge and the Clebsch-Gordan coefficients of all paths from one l make one matrix, which multiplies the features of
that l while they are in the cache; the gradient is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.loops import compiled

SHARED = "shared_lengths"  # our key of a model's data
Features = Sequence[torch.Tensor]  # of every l from 0 on, each (N, 2l + 1, channels)


@dataclass(frozen=True)
class _Block:
    """All paths from the features of one l.

    degree: l of the features. rows: (paths + 1,) where each path begins among the K rows of the block. weights: (paths,) where each
    begins among all weights. coupling: (J, K·(2l + 1)), from the J harmonics of an edge to a matrix (K, 2l + 1) from features to
    rows. The outputs of all l stand one after the other: with N nodes, row k of node n begins at
    N · before[k] + within[k] + n · step[k].
    """

    degree: int
    rows: np.ndarray
    weights: np.ndarray
    before: np.ndarray
    within: np.ndarray
    step: np.ndarray
    coupling: torch.Tensor

    def matrix(self, harmonics: torch.Tensor) -> np.ndarray:
        """Return (E, K, 2l + 1) of the harmonics (E, J)."""
        return (harmonics @ self.coupling.to(harmonics)).view(-1, int(self.rows[-1]), 2 * self.degree + 1).numpy()


@lru_cache(maxsize=8)
def _kernels(size: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the loops over edges, forward and backward, for features of ``size`` components: the compiler unrolls what it knows.

    Both take (features, matrix, w, lengths, to, source, rows, weights, places, step) of one block, then forward ``out``, to which
    they add, and backward its gradient ``of_out``, ``of_features``, ``of_matrix`` and ``of_w``; they fill ``of_matrix`` and add to
    the others.
    """

    @compiled
    def forward(features, matrix, w, lengths, to, source, rows, weights, places, step, out):
        mul = features.shape[2]
        for e in range(len(to)):
            of_source = features[source[e]]
            for p in range(len(weights)):
                weight = w[lengths[e], weights[p] : weights[p] + mul]
                for k in range(rows[p], rows[p + 1]):
                    start = places[k] + to[e] * step[k]
                    row, total = matrix[e, k], out[start : start + mul]
                    for u in range(mul):
                        product = row[0] * of_source[0, u]
                        for i in range(1, size):
                            product += row[i] * of_source[i, u]
                        total[u] += weight[u] * product

    @compiled
    def backward(features, matrix, w, lengths, to, source, rows, weights, places, step, of_out, of_features, of_matrix, of_w):
        mul, zero = features.shape[2], features.dtype.type(0)
        part = np.empty((size, mul), features.dtype)
        for e in range(len(to)):
            feature, of_feature = features[source[e]], of_features[source[e]]
            for p in range(len(weights)):
                channels = slice(weights[p], weights[p] + mul)
                weight, of_weight = w[lengths[e], channels], of_w[lengths[e], channels]
                part[:] = zero
                for k in range(rows[p], rows[p + 1]):
                    start = places[k] + to[e] * step[k]
                    of_row = of_out[start : start + mul]
                    for i in range(size):
                        factor = matrix[e, k, i]
                        for u in range(mul):
                            part[i, u] += factor * of_row[u]
                for u in range(mul):
                    total = zero
                    for i in range(size):
                        total += part[i, u] * feature[i, u]
                    of_weight[u] += total
                for i in range(size):  # a loop of its own: with the one above the compiler would not make vectors of it
                    for u in range(mul):
                        of_feature[i, u] += weight[u] * part[i, u]
                        part[i, u] = weight[u] * feature[i, u]
                for k in range(rows[p], rows[p + 1]):
                    start = places[k] + to[e] * step[k]
                    of_row = of_out[start : start + mul]
                    for i in range(size):
                        total = zero
                        for u in range(mul):
                            total += part[i, u] * of_row[u]
                        of_matrix[e, k, i] = total

    return forward, backward


class _Convolve(torch.autograd.Function):
    """out[n, k, u] = Σ over edges e to n of w[length of e, path of k, u] Σ_i x[source of e, i, u] m[e, k, i].

    m = harmonics · coupling.
    """

    @staticmethod
    def forward(
        ctx: Any,
        harmonics: torch.Tensor,
        weight: torch.Tensor,
        lengths: np.ndarray,
        edges: torch.Tensor,
        blocks: Sequence[_Block],
        width: int,
        *features: torch.Tensor,
    ) -> torch.Tensor:
        """Return the outputs of all l one after the other; shapes as in ``FastConvolution``."""
        nodes = len(features[0])
        out, ctx.given = harmonics.new_zeros(nodes * width), []
        for block in blocks:
            edge = block.matrix(harmonics), weight.numpy(), lengths, *edges.numpy()
            place = block.rows, block.weights, nodes * block.before + block.within, block.step
            ctx.given.append((features[block.degree].numpy(), *edge, *place))
            _kernels(2 * block.degree + 1)[0](*ctx.given[-1], out.numpy())
        ctx.save_for_backward(harmonics, weight, *features)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of harmonics, weight and features."""
        harmonics, weight, *features = ctx.saved_tensors
        of_harmonics, of_weight = torch.zeros_like(harmonics), torch.zeros_like(weight)
        of_features = [torch.zeros_like(x) for x in features]
        for block, given in zip(ctx.blocks, ctx.given, strict=True):
            of_matrix = torch.empty(given[1].shape, dtype=harmonics.dtype)
            filled = of_features[block.degree].numpy(), of_matrix.numpy(), of_weight.numpy()
            _kernels(2 * block.degree + 1)[1](*given, of_out.numpy(), *filled)
            of_harmonics.addmm_(of_matrix.flatten(1), block.coupling.to(harmonics).T)
        return of_harmonics, of_weight, None, None, None, None, *of_features


def shared_lengths(vectors: np.ndarray, edges: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Tell which edges are the two directions of one, whose weights are the same.

    Args:
        vectors: (E, 3) Å.
        edges: (2, E), to and from.

    Returns:
        (L,) one edge of each pair, and (E,) which of these an edge is like. Where edges do not come in pairs, each is its own.
    """
    to, source = edges
    forward = np.lexsort((*vectors.T, source, to))
    backward = np.lexsort((*-vectors.T, to, source))
    other = np.empty(len(to), int)
    other[forward] = backward
    if not (np.array_equal(vectors[other], -vectors) and np.array_equal(to[other], source)):
        return torch.arange(len(to)), np.arange(len(to))
    first = np.minimum(other, np.arange(len(to)))
    of_length, lengths = np.unique(first, return_inverse=True)
    return torch.from_numpy(of_length), lengths


class FastConvolution(nn.Module):
    """The tensor product of nodes' features with the harmonics of edges, summed over the edges to each node.

    Args:
        product: e3nn's ``TensorProduct`` of SevenNet's ``IrrepsConvolution``: paths "uvu" with harmonics of one channel, each with
            weights and an output of its own; one entry for each l among the features, outputs in the order of their l.
        denominator: by which the sums are divided.
    """

    def __init__(self, product: Any, denominator: float = 1.0) -> None:
        from e3nn.o3 import wigner_3j

        super().__init__()
        ls = [irrep.l for _, irrep in product.irreps_out]
        muls = np.array([mul for mul, _ in product.irreps_out])
        widths = np.array([muls[np.equal(ls, degree)].sum() for degree in range(max(ls) + 1)])  # channels of the outputs of each l
        self.sizes = (2 * np.arange(len(widths)) + 1).tolist()
        self.steps = self.sizes * widths
        self.before = np.cumsum([0, *self.steps])
        harmonics = product.irreps_in2.slices()
        first_weight = np.cumsum([0, *(instruction.path_shape[0] for instruction in product.instructions)])
        blocks = []
        for number, (_, irrep) in enumerate(product.irreps_in1):
            couplings, weights, lengths, places = [], [], [], []
            for instruction, weight in zip(product.instructions, first_weight, strict=False):
                if instruction.i_in1 != number:
                    continue
                l_filter, l_out = product.irreps_in2[instruction.i_in2].ir.l, ls[instruction.i_out]
                coefficients = wigner_3j(irrep.l, l_filter, l_out, dtype=torch.float64).permute(1, 2, 0)
                couplings.append(coefficients.new_zeros(product.irreps_in2.dim, 2 * l_out + 1, irrep.dim))
                couplings[-1][harmonics[instruction.i_in2]] = instruction.path_weight / denominator * coefficients
                weights.append(weight)
                lengths.append(2 * l_out + 1)
                channel = sum(muls[i] for i in range(instruction.i_out) if ls[i] == l_out)
                within = [component * widths[l_out] + channel for component in range(2 * l_out + 1)]
                places += [(self.before[l_out], start, self.steps[l_out]) for start in within]
            if couplings:
                rows, coupling = np.cumsum([0, *lengths]), torch.cat(couplings, 1).flatten(1)
                blocks.append(_Block(irrep.l, rows, np.array(weights), *np.array(places).T.copy(), coupling))
        self.blocks = tuple(blocks)

    def forward(
        self, features: Features, harmonics: torch.Tensor, weight: torch.Tensor, lengths: np.ndarray, edges: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the outputs of every l.

        Args:
            features: of the nodes.
            harmonics: (E, J).
            weight: (L, weights).
            lengths: (E,) which of the L weights is that of an edge.
            edges: (2, E), to and from.
        """
        nodes = len(features[0])
        out = _Convolve.apply(harmonics, weight, lengths, edges, self.blocks, int(self.before[-1]), *features)
        parts = out.split((nodes * self.steps).tolist())
        return [part.view(nodes, size, -1) for part, size in zip(parts, self.sizes, strict=True)]


class _Linear(nn.Module):
    """e3nn's ``Linear``, one product of matrices for each l. What else reaches the scalars is taken for the one-hot modality."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        linear, self.key_modality = layer.linear, getattr(layer, "key_modal_attr", "")
        self.weights, self.of_modality = {}, None
        for number, instruction in enumerate(linear.instructions):
            degree = linear.irreps_in[instruction.i_in].ir.l
            weight = linear.weight_view_for_instruction(number).detach() * instruction.path_weight
            if degree in self.weights:
                self.of_modality = weight
            else:
                self.weights[degree] = weight

    def forward(self, features: Features, data: dict[str, Any]) -> dict[int, torch.Tensor]:
        """Return (N, 2l + 1, channels) of every l that is reached."""
        found = {degree: features[degree] @ weight for degree, weight in self.weights.items()}
        if self.of_modality is not None:
            found[0] = found[0] + data[self.key_modality].to(found[0]) @ self.of_modality
        return found


class _Radial(nn.Module):
    """e3nn's ``FullyConnectedNet``, which scales its weights at every call, with the scaled weights."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.layers = []
        for layer in network:
            scale = (layer.h_in * layer.var_in) ** -0.5 * (1 if layer.act else layer.var_out**0.5)
            self.layers.append((layer.weight.detach() * scale, layer.act, layer.var_out**0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (L, weights) of the embeddings (L, basis)."""
        for weight, act, scale in self.layers:
            x = x @ weight
            if act is not None:
                x = act(x) * scale
        return x


class FastInteraction(nn.Module):
    """One interaction of SevenNet: its self-connection, two linear layers with the convolution between them, and the gate.

    Args:
        layers: those of the model, by their names without the number of the interaction.
    """

    def __init__(self, layers: dict[str, Any]) -> None:
        from sevenn import _keys

        super().__init__()
        self.connection = _Linear(layers["self_connection_intro"])
        self.before, self.after = _Linear(layers["self_interaction_1"]), _Linear(layers["self_interaction_2"])
        layer, self.gate = layers["convolution"], layers["equivariant_gate"].gate
        self.weight_nn = _Radial(layer.weight_nn)
        self.convolution = FastConvolution(layer.convolution, float(layer.denominator))
        self.keys = layer.key_x, layer.key_filter, layer.key_weight_input, layer.key_edge_idx, _keys.EDGE_VEC

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Replace the features of the nodes, which are a tensor (N, channels) where there are only scalars, else ``Features``."""
        key, key_filter, key_weight_input, key_edges, key_vectors = self.keys
        features = data[key]
        if isinstance(features, torch.Tensor):
            features = [features[:, None]]
        connection, before = self.connection(features, data), self.before(features, data)
        if SHARED not in data:
            data[SHARED] = shared_lengths(data[key_vectors].detach().numpy(), data[key_edges].numpy())
        of_length, lengths = data[SHARED]
        weight = self.weight_nn(data[key_weight_input].index_select(0, of_length))
        given = [before[degree] for degree in range(len(before))]
        after = self.after(self.convolution(given, data[key_filter], weight, lengths, data[key_edges]), data)
        for degree, own in connection.items():
            after[degree] = after[degree] + own
        data[key] = self._gated([after[degree] for degree in range(len(after))])
        return data

    def _gated(self, features: Features) -> torch.Tensor | list[torch.Tensor]:
        scalars, *gated = features
        count = self.gate.irreps_scalars.dim
        active = self.gate.act_scalars.acts[0](scalars[..., :count])
        if not gated:
            return active[:, 0]
        gates = self.gate.act_gates.acts[0](scalars[..., count:]).split([x.shape[-1] for x in gated], -1)
        return [active, *(x * gate for x, gate in zip(gated, gates, strict=True))]


def use_fast_interactions(model: nn.Module) -> int:
    """Replace the interactions of a SevenNet model on a CPU, which cannot be trained then, and return how many there were."""
    from sevenn.nn.convolution import IrrepsConvolution

    own = {name: layer for name, layer in model.named_children() if type(layer) is IrrepsConvolution}
    for name in own:
        number = name.removesuffix("convolution")
        layers = {part.removeprefix(number): layer for part, layer in model.named_children() if part.startswith(number)}
        setattr(model, name, FastInteraction(layers))
        for part in layers.keys() - {"convolution"}:
            delattr(model, number + part)
    return len(own)
