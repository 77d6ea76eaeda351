"""Iterative null-space projection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wellposed.adaptation.inlp import inlp, nullspace_projection, tpr_gap


def leaking(seed: int = 0, rows: int = 900) -> tuple[Tensor, Tensor]:
    """20 dimensions in which a binary attribute shifts 3, with covariances that differ between its classes."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(2, (rows,), generator=g)
    x = torch.randn(rows, 20, generator=g) * torch.where(z[:, None] == 1, torch.linspace(0.5, 2, 20), 1.0)
    x[:, :3] += 2.0 * z[:, None]
    return x @ torch.linalg.qr(torch.randn(20, 20, generator=g)).Q, z


def test_projection_is_one_and_removes_every_row() -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 9, generator=g, dtype=torch.float64)
    w = torch.cat([w, w[:1] * 1e5, w[1:2] + w[2:3]])  # dependent rows of other lengths
    p = nullspace_projection(w)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-12)
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(w @ p / w.norm(dim=1, keepdim=True), torch.zeros_like(w), rtol=0, atol=1e-12)
    assert float(p.trace()) == pytest.approx(9 - 4)
    by_pinv = torch.eye(9, dtype=torch.float64) - torch.linalg.pinv(w, rtol=1e-9) @ w
    torch.testing.assert_close(p, by_pinv, rtol=0, atol=1e-8)


def test_no_probe_reads_the_attribute_afterwards() -> None:
    x, z = leaking()
    found = inlp(x[:600], z[:600], x[600:], z[600:])
    assert found.accuracies[0] > 0.9
    assert found.accuracies[-1] <= found.majority + 0.02
    assert len(found.directions) == len(found.accuracies) - 1
    layer = found.layer()
    guarded = layer(x)
    assert guarded.dtype == x.dtype
    torch.testing.assert_close(layer(guarded), guarded, rtol=1e-4, atol=1e-5)
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=100.0).fit(guarded[:600].numpy(), z[:600].numpy())
    assert probe.score(guarded[600:].numpy(), z[600:].numpy()) < found.majority + 0.06
    assert list(layer.state_dict()) == ["projection"]


def test_the_unit_of_the_representations_does_not_matter() -> None:
    x, z = leaking()
    one = inlp(x[:600], z[:600], x[600:], z[600:], steps=2)
    other = inlp(1e3 * x[:600], z[:600], 1e3 * x[600:], z[600:], steps=2)
    torch.testing.assert_close(one.projection, other.projection, rtol=0, atol=1e-4)


def test_recall_gap_by_hand() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    z = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1])  # recalls 1 and 1/2 for class 0, 1/2 and 1 for class 1
    assert float(tpr_gap(predicted, y, z)) == pytest.approx(0.5)
    assert float(tpr_gap(y, y, z)) == 0
    with pytest.raises(ValueError, match="no class has members of both groups"):
        tpr_gap(y, y, y)


def test_bad_input_is_said() -> None:
    x, z = leaking()
    with pytest.raises(ValueError, match="one class only"):
        inlp(x, torch.zeros_like(z), x, z)
    with pytest.raises(ValueError, match="x_dev must be finite"):
        inlp(x, z, x * float("nan"), z)
    with pytest.raises(ValueError, match="with one attribute each"):
        inlp(x, z[:5], x, z)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        inlp(x, z, x, z, steps=0)
