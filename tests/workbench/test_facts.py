"""Facts of data and model that techniques are told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellposed.workbench.facts import Facts, feature_layer
from wellposed.workbench.trial import Setting


class Residual(nn.Module):
    """What goes into the head is no submodule's output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.body(x))


def test_features_are_what_the_last_linear_layer_reads() -> None:
    x = torch.randn(2, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(108, 5))
    before = [m.training for m in net.modules()]
    assert feature_layer(net, x) == ("4", 108)
    assert [m.training for m in net.modules()] == before
    assert int(net.get_buffer("1.num_batches_tracked")) == 0
    assert not any(m._forward_hooks for m in net.modules())
    assert feature_layer(Residual(), torch.randn(2, 4)) is None
    assert feature_layer(nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4)) is None  # the data are no features
    assert feature_layer(nn.Conv2d(1, 2, 3), x) is None


def test_which_width_is_meant() -> None:
    facts = Facts(rows=600, classes=None, inputs=64, layer="act2", features=128)
    assert facts.settings({"rows", "classes", "strength"}) == {"rows": 600}
    assert facts.settings({"layer", "width"}) == {"layer": "act2", "width": 128}
    assert facts.settings({"width"}) == {"width": 64}


def test_facts_of_the_default_scenario() -> None:
    facts = Setting(train_size=600).facts()
    assert (facts.rows, facts.classes, facts.inputs, facts.features) == (600, 10, 64, 128)
    assert facts.layer
