"""The public replication of Pointer Networks up to the states that its pointer takes, from the golden files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class States(NamedTuple):
    points: Tensor
    keys: Tensor
    """(B, n + 1, h): the end symbol, then the encoder's states."""
    queries: Tensor
    """(B, m, h)."""
    lengths: Tensor
    """Of keys."""
    query_lengths: Tensor


def replica(shared: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], States]:
    """Return the golden files, their outputs in this dtype, the weights (that want gradients), and the states."""
    golden = load_file(shared / "golden" / "pointer-networks" / "case.safetensors")
    folder = "outputs_f64/" if dtype == torch.float64 else "outputs/"
    outputs = {name.removeprefix(folder): x for name, x in golden.items() if name.startswith(folder)}
    model = {
        name.removeprefix("weights/"): x.to(dtype).requires_grad_()
        for name, x in golden.items()
        if name.startswith("weights/")
    }
    points, target = golden["inputs/points"].to(dtype).requires_grad_(), golden["inputs/target"]
    batch, width = len(points), len(model["end_symbol"])

    def lstm(part: str) -> nn.LSTM:
        made = nn.LSTM(2, width, batch_first=True, dtype=dtype)
        for name, _ in list(made.named_parameters()):
            delattr(made, name)
            setattr(made, name, model[f"{part}.{name}"])
        return made

    h, c = (model[name].expand(1, batch, -1).contiguous() for name in ("end_symbol", "encoder_c_0"))
    packed = pack_padded_sequence(points, golden["inputs/lengths"], batch_first=True, enforce_sorted=False)
    states, last = lstm("encoder")(packed, (h, c))
    states, _ = pad_packed_sequence(states, batch_first=True, total_length=points.shape[1])
    keys = torch.cat([model["end_symbol"].expand(batch, 1, -1), states], 1)
    before = (target[:, :-1] - 1).clamp(min=0)
    chosen = points.gather(1, before.unsqueeze(2).expand(-1, -1, 2))
    queries, _ = lstm("decoder")(torch.cat([model["start_symbol"].expand(batch, 1, -1), chosen], 1), last)
    return golden, outputs, model, States(points, keys, queries, golden["inputs/lengths"] + 1, (target >= 0).sum(1))
