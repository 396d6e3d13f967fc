"""record collects by name what modules compute, and costs nothing where it is off."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyhead
from polyhead import record, recording
from polyhead.errors import UnknownNameError
from polyhead.nn import MultiHeadAttention, Stack


class Model(nn.Module):
    """An encoder and a decoder, and a gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Stack(8, 1, 2)
        self.decoder = Stack(8, 2, 2, causal=True, cross=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(x, memory=self.encoder(x).x).x
        recording.note(self, "gate", y.sigmoid())
        recording.note(self, "nothing", None)
        return y


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_weights_of_every_layer_have_names(model: Model) -> None:
    with record(model, weights=True) as tape:
        model(X)
    assert list(tape) == [
        "encoder.blocks.0.mixer.attention.weights",
        "decoder.blocks.0.mixer.attention.weights",
        "decoder.blocks.0.cross.weights",
        "decoder.blocks.1.mixer.attention.weights",
        "decoder.blocks.1.cross.weights",
    ]
    for name, (weights,) in tape.items():
        assert weights.shape == (2, 2, 5, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
        later = weights[..., torch.ones(5, 5, dtype=torch.bool).triu(1)]
        assert bool(later.any()) == ("decoder.blocks" not in name or "cross" in name)
        assert not weights.requires_grad
    assert len(tape) == 5
    assert "encoder" not in tape


def test_outputs_stay_the_same(model: Model) -> None:
    expected = model(X)
    with record(model, weights=[1], gate=True, nothing=True) as tape:
        output = model(X)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(tape["gate"][0], expected.sigmoid())
    assert tape["decoder.blocks.1.cross.weights"][0].shape == (2, 1, 5, 5)
    assert "nothing" not in tape


def test_every_call_is_kept_and_can_be_chosen(model: Model) -> None:
    with record(model, weights=True, where=["*.cross.*", "encoder.*"]) as tape:
        model(X)
        model(X[:1, :3])
    assert len(tape) == 3
    assert [weights.shape for weights in tape["decoder.blocks.0.cross.weights"]] == [(2, 2, 5, 5), (1, 2, 3, 3)]


def test_names_begin_at_the_model_given(model: Model) -> None:
    with record(model.decoder, weights=True, where="blocks.1*") as tape:
        model(X)
    assert list(tape) == ["blocks.1.mixer.attention.weights", "blocks.1.cross.weights"]
    attention = MultiHeadAttention(8, 2)
    with record(attention, weights=True) as tape:
        attention(X)
    assert list(tape) == ["weights"]


def test_a_loss_on_recorded_weights(model: Model) -> None:
    with record(model, where="*.cross.weights", detach=False, weights=[0]) as tape:
        model(X)
    sum(weights.square().sum() for (weights,) in tape.values()).backward()  # type: ignore[union-attr]
    assert model.decoder.get_parameter("blocks.1.cross.q_proj.weight").grad is not None


def test_asked_and_recorded_heads_may_differ() -> None:
    attention = MultiHeadAttention(8, 4)
    every = attention(X, return_weights=True).weights
    assert every is not None
    with record(attention, weights=[3, 1]) as tape:
        weights = attention(X, return_weights=[0, 3]).weights
        assert attention(X).weights is None
    assert weights is not None
    torch.testing.assert_close(weights, every[:, [0, 3]])
    for recorded in tape["weights"]:
        torch.testing.assert_close(recorded, every[:, [3, 1]])


def test_the_innermost_records(model: Model) -> None:
    with record(model, weights=True) as outer:
        with record(model.encoder, weights=True) as inner:
            model(X)
        assert not len(outer)
        model.encoder(X)
    assert list(inner) == ["blocks.0.mixer.attention.weights"]
    assert list(outer) == ["encoder.blocks.0.mixer.attention.weights"]


def test_other_threads_do_not_take_part(model: Model) -> None:
    with record(model, weights=True) as tape:
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
    assert not len(tape)


def test_unknown_name_is_refused(model: Model) -> None:
    with record(model, weights=True) as tape:
        model(X)
    with pytest.raises(
        UnknownNameError, match=r'No recorded tensor "decoder\.blocks\.0\.cross"\. Did you mean "decoder'
    ):
        _ = tape["decoder.blocks.0.cross"]


def test_off_nothing_is_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.nn import multi_head_attention

    asked = []
    attend = multi_head_attention.softmax_attention

    def watched(*tensors: Tensor, return_weights: object, **arguments: object) -> object:
        asked.append(return_weights)
        return attend(*tensors, return_weights=return_weights, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(multi_head_attention, "softmax_attention", watched)
    model(X)
    assert asked == [False] * 5


def test_a_compiled_model_records_too(model: Model) -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
    expected = compiled(X)
    with record(compiled, weights=True) as tape:
        torch.testing.assert_close(compiled(X), expected)
    assert "decoder.blocks.1.cross.weights" in tape
    compiled(X)
    assert len(graphs) == 1  # neither the recording nor what came after compiled anything
    assert not any("softmax" in str(node.target) and "scaled" not in str(node.target) for node in graphs[0].graph.nodes)


def test_polyhead_record_is_this() -> None:
    assert polyhead.record is record
