"""Recorded runs of the published code: weights under its names, inputs, outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from polyhead_gaze.oat import OAT, OATConfig


class Golden:
    """One recorded case."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.about = json.loads((folder / f"{name}.json").read_text())
        self.sizes: dict[str, Any] = self.about["config"]

    def weight(self, name: str) -> Tensor:
        return self.tensors[f"weights/{name}"]

    def output(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.tensors[f"{'outputs_f64' if dtype == torch.float64 else 'outputs'}/{name}"]

    def model(self, dtype: torch.dtype) -> OAT:
        """Build the released variant with the recorded weights."""
        c = self.sizes
        attentive = c["CA_version"] == 3
        model = OAT(
            OATConfig.release(
                "shelves",
                dim=c["emb"],
                heads=c["nhead"],
                ff_dim=c["ffn"],
                depth=c["enc_layers"],
                decoder_depth=c["dec_layers"],
                place="table" if c["functionChoice"] == "learned" else "sinusoid",
                cells=c["pe_rows"],
                readout="objects" if attentive else "linear",
                readout_heads=c["CA_head"],
                readout_width=c["CA_dk"],
                objects=0 if attentive else c["N"],
                crop_height=c["crop"][0],
                crop_width=c["crop"][1],
                pyramid=c["spp"],
            )
        )
        state = self.renamed(c["CA_head"])
        if c["functionChoice"] == "learned":
            state["place_code.table"] = torch.cat([self.weight("PE_table"), torch.zeros(4, c["pe_width"])])
        model.load_state_dict(state)
        return model.to(dtype).eval()

    def renamed(self, heads: int) -> dict[str, Tensor]:
        """Return the recorded weights under the names of `OAT`."""
        state: dict[str, Tensor] = {}
        parts = {"self_attn": "mixer.attention", "multihead_attn": "cross", "linear1": "ff.up", "linear2": "ff.down"}
        for key in self.tensors:
            if not key.startswith("weights/transformer_"):
                continue
            stack, _, layer, rest = key.removeprefix("weights/transformer_").split(".", 3)
            norms = {"norm1": "mixer_norm", "norm2": "ff_norm" if stack == "encoder" else "cross_norm"}
            norms |= {} if stack == "encoder" else {"norm3": "ff_norm"}
            for old, new in {**parts, **norms}.items():
                rest = rest.replace(f"{old}.", f"{new}.", 1) if rest.startswith(f"{old}.") else rest
            name, value = f"{stack}.blocks.{layer}.{rest}", self.tensors[key]
            if "in_proj" in rest:
                kind = rest.rpartition("_")[2]
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    state[f"{name.rpartition('.')[0]}.{part}_proj.{kind}"] = piece
            else:
                state[name] = value
        for old, new in {"cnn1.0": "first", "cnn2.0": "second", "fc": "out"}.items():
            for kind in ("weight", "bias"):
                state[f"seen.{new}.{kind}"] = self.weight(f"cnn_embedding.{old}.{kind}")
        attentive = "weights/readout.weight" in self.tensors
        for kind in ("weight", "bias"):
            if attentive:
                for old, new in {"encode_fc": "readout_keys", "decode_fc": "readout_queries"}.items():
                    each = [self.weight(f"cross_attentions.{head}.{old}.{kind}") for head in range(heads)]
                    state[f"{new}.{kind}"] = torch.cat(each)
                state[f"merge.{kind}"] = self.weight(f"readout.{kind}")
            else:
                state[f"slots.{kind}"] = self.weight(f"generator.{kind}")
        return state

    def inputs(self) -> dict[str, Tensor]:
        """Return the arguments of `OAT.forward`."""
        c, tensors = self.sizes, self.tensors
        count = c["N"]
        at = torch.arange(count)
        place = torch.stack([at // c["cols"], at % c["cols"]], -1).float()
        path = tensors["inputs/tgt_pos"][1:].T
        return {
            "place": place.expand(c["B"], -1, -1).contiguous(),
            "objects": torch.ones(c["B"], count, dtype=torch.bool),
            "target": tensors["inputs/src_pos"][-1],
            # Half the rows and columns, cut to integers where they are looked up.
            "start": torch.tensor([[c["rows"] / 2, c["cols"] / 2]]).floor().expand(c["B"], -1).contiguous(),
            "fixations": path.masked_fill(path >= count, -1)[:, : int((path < count).sum(1).max())],
            "appearance": tensors["inputs/crops_uint8"],
        }
