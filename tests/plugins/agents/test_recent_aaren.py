"""The mixer recent-aaren."""

from __future__ import annotations

import pytest
import torch

from polyhead.errors import ConfigError
from polyhead.nn import Aaren
from polyhead.nn.mixing import Context
from polyhead.testing import check_mixer
from polyhead_agents.recent_aaren import RecentAaren


def test_it_is_a_mixer() -> None:
    assert check_mixer(RecentAaren)
    assert check_mixer("recent-aaren", compiled=False)


def test_it_weighs_by_score_and_age() -> None:
    torch.manual_seed(0)
    mixer, x = RecentAaren(6, 2, slopes=(0.0, 0.5)).double(), torch.randn(1, 5, 6, dtype=torch.float64)
    mixer.token.data.mul_(50)
    q = mixer.q_proj(mixer.token).view(2, 3)
    k, v = (linear(x).view(5, 2, 3) for linear in (mixer.k_proj, mixer.v_proj))
    for t in range(5):
        heads = []
        for head, slope in enumerate((0.0, 0.5)):
            logits = torch.stack([q[head] @ k[i, head] / 3**0.5 - slope * (t - i) for i in range(t + 1)])
            heads.append(logits.softmax(0) @ v[: t + 1, head])
        torch.testing.assert_close(mixer(x).x[0, t], mixer.out_proj(torch.cat(heads)), atol=1e-12, rtol=0)


def test_without_slopes_it_is_aaren() -> None:
    torch.manual_seed(0)
    aaren, mixer, x = Aaren(8, 2), RecentAaren(8, 2, slopes=(0.0, 0.0)), torch.randn(2, 7, 8)
    mixer.load_state_dict({**aaren.state_dict(), "slopes": mixer.slopes})
    torch.testing.assert_close(mixer(x).x, aaren(x).x, atol=1e-6, rtol=0)


def test_a_long_stream_stays_exact() -> None:
    torch.manual_seed(0)
    mixer = RecentAaren(8, 4)
    x, state = torch.randn(1, 3, 8), mixer.init_state(1)
    with torch.no_grad():
        for _ in range(2):  # 40,000 tokens of noise first, and only the slow head remembers any of it
            state = mixer(torch.randn(1, 20_000, 8), state=state).state
        chunk = mixer(x, state=state).x
        for t in range(3):
            y, state, *_ = mixer.step(x[:, t], state=state)
            torch.testing.assert_close(y, chunk[:, t], atol=1e-5, rtol=0)
    assert all(part.isfinite().all() for part in state)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dim is 6 and heads is 4: dim must be a multiple of heads"):
        RecentAaren(6, 4)
    for slopes in ((0.0,), (0.0, -1.0)):
        with pytest.raises(ConfigError, match=r"slopes is .*, expected 2 numbers, one a head, 0 or more"):
            RecentAaren(4, 2, slopes=slopes)
    with pytest.raises(ConfigError, match=r"RecentAaren is causal\. Make the stack with causal=True"):
        RecentAaren(4, 2)(torch.zeros(1, 2, 4), ctx=Context(causal=False))
