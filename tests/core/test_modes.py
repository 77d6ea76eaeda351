"""Modes that are changed for a while."""

import pytest
from torch import nn

from wellposed.core.modes import evaluating


def test_every_part_gets_its_own_mode_back_even_after_an_error() -> None:
    net, other = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)), nn.Dropout()
    net[1].eval()  # frozen by its user

    def modes() -> list[bool]:
        return [m.training for m in (*net.modules(), other)]

    def looked_at_and_failed() -> None:
        assert modes() == [False] * 4
        raise KeyError

    with pytest.raises(KeyError), evaluating(net, other):
        looked_at_and_failed()
    assert modes() == [True, True, False, True]
