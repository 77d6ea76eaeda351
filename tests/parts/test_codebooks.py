"""Codebooks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from ranks import on_two_ranks
from wellposed.parts import codebooks
from wellposed.parts.codebooks import Codebook, codes_of, even_codes, look_up, nearest_codes, perplexity, usage


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("widest", [1, 2**22])
def test_nearest_by_explicit_loops(size: int, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "WIDEST", widest)  # row by row, and all at once
    x, codes = draw(6, 2, 4, size), draw(4, 5, size, seed=1)
    index = nearest_codes(x, codes)
    for i in range(6):
        for j in range(2):
            for g in range(4):
                distances = [float((x[i, j, g] - codes[g, k]).norm()) for k in range(5)]
                assert index[i, j, g] == distances.index(min(distances))
                assert torch.equal(look_up(codes, index)[i, j, g], codes[g, index[i, j, g]])
    assert nearest_codes(x[:0], codes).shape == (0, 2, 4)


def test_near_codes_far_from_the_origin_are_told_apart() -> None:
    """An expansion into products would find all of these at the same distance in float32."""
    codes = 1e4 + torch.tensor([[[0.0, 0.0], [0.01, 0.0], [0.02, 0.0]]])
    assert nearest_codes(codes[0].unsqueeze(1), codes).flatten().tolist() == [0, 1, 2]


def test_gradients_go_past_the_codes_and_the_codes_learn_from_their_own_error() -> None:
    book = Codebook(draw(2, 3, 2))
    x = draw(7, 4, seed=1).requires_grad_()
    found = book(x)
    assert torch.equal(found.values, look_up(book.codes, found.indices).flatten(1))
    weights = draw(7, 4, seed=2)
    to_x, to_codes = torch.autograd.grad((found.values * weights).sum(), [x, book.codes], allow_unused=True)
    assert torch.equal(to_x, weights)
    assert to_codes is None

    to_x, to_codes = torch.autograd.grad(found.quantization_error().sum(), [x, book.codes], allow_unused=True)
    assert to_x is None
    wanted = torch.zeros(2, 3, 2, dtype=torch.float64)
    for i in range(7):
        for g in range(2):
            k = found.indices[i, g]
            wanted[g, k] += 2 * (book.codes[g, k] - x[i, 2 * g : 2 * g + 2]).detach() / 4
    torch.testing.assert_close(to_codes, wanted, rtol=1e-12, atol=0)

    to_x, to_codes = torch.autograd.grad(found.commitment_error().sum(), [x, book.codes], allow_unused=True)
    assert to_codes is None
    torch.testing.assert_close(to_x, (x - found.values).detach() / 2, rtol=1e-12, atol=0)
    assert torch.equal(found.commitment_error(), found.quantization_error())


def test_codes_follow_the_mean_of_what_they_stand_for() -> None:
    """Two updates by explicit loops; a code nobody chooses stays bit for bit, for ever."""
    start, decay = torch.tensor([[[0.0], [10.0], [100.0]]]).double(), 0.5
    book = Codebook(start, decay=decay)
    counts, sums = [1.0, 1.0], [0.0, 10.0]
    for seed in range(2):
        x = torch.cat([draw(5, 1, seed=seed), 10 + draw(3, 1, seed=seed + 5)])
        index = book(x).indices
        assert index.flatten().tolist() == [0] * 5 + [1] * 3
        for k, rows in enumerate((x[:5], x[5:])):
            counts[k] = decay * counts[k] + (1 - decay) * len(rows)
            sums[k] = decay * sums[k] + (1 - decay) * float(rows.sum())
            assert book.codes[0, k, 0] == pytest.approx(sums[k] / counts[k], rel=1e-6)  # counts are float32
    for _ in range(200):
        book(x)
    assert book.codes[0, 2, 0] == pytest.approx(100, rel=1e-6)
    assert book.codes[0, 0, 0] == pytest.approx(float(x[:5].mean()), rel=1e-5)
    before = book.codes.clone()
    book.eval()(x)
    assert torch.equal(book.codes, before)


def test_usage_and_perplexity() -> None:
    index = torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]])
    assert usage(index, 4).tolist() == [1, 0.25]
    torch.testing.assert_close(perplexity(index, 4), torch.tensor([4.0, 1.0]).double())
    skewed = torch.tensor([0, 0, 0, 1]).view(4, 1)
    wanted = (4 / 3) ** 0.75 * 4**0.25
    assert perplexity(skewed, 8).item() == pytest.approx(wanted)


def test_where_codes_come_from() -> None:
    assert even_codes(2, 5).squeeze(-1).tolist() == [[-0.5, -0.25, 0, 0.25, 0.5]] * 2
    x = draw(20, 6)
    codes = codes_of(x, 4, groups=2, generator=torch.Generator().manual_seed(0))
    assert codes.shape == (2, 4, 3)
    for g in range(2):
        assert len(set(map(tuple, codes[g].tolist()))) == 4
        assert all((x.view(20, 2, 3)[:, g] == code).all(1).any() for code in codes[g])
    with pytest.raises(ValueError, match="5 codes cannot be drawn from 4 rows"):
        codes_of(x[:4], 5)


class Tokenised(nn.Module):
    """Convolutions with BatchNorm around a codebook of image channels."""

    def __init__(self, decay: float | None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.book = Codebook(0.5 * torch.randn(2, 4, 3), decay=decay, dim=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.book(self.encoder(x)).values)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_in_a_conv_net_with_extra_passes(decay: float | None) -> None:
    """SAM's second pass moves no mean."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    model = Tokenised(decay)
    found = model.book(model.encoder(x))
    assert found.values.shape == (12, 6, 4, 4)
    assert found.indices.shape == (12, 4, 4, 2)
    assert found.quantization_error().shape == (12,)
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def trained(extra: bool) -> Tokenised:
        again = Tokenised(decay)
        again.load_state_dict(start)
        recipe = wp.Recipe(*[wp.SAM(rho=1e-12)] if extra else []).attach(again, wp.Classify(classes=3))
        recipe.step({"x": x, "y": y}, torch.optim.SGD(again.parameters(), lr=0.0))
        return again

    if decay is not None:
        one, two = trained(False).book, trained(True).book
        assert not torch.equal(one.codes, start["book.codes"])
        torch.testing.assert_close(one.counts, two.counts)
        torch.testing.assert_close(one.codes, two.codes)


def test_half_precision_and_autocast() -> None:
    book = Codebook(draw(2, 4, 3).float())
    x = draw(5, 6).bfloat16()
    assert book(x).values.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert book(x.float()).quantization_error().dtype == torch.float32


@pytest.mark.parametrize("decay", [None, 0.9])
def test_compiled_on_images(decay: float | None) -> None:
    book, x = Codebook(draw(2, 5, 3).float(), decay=decay, dim=1), draw(4, 6, 3, 3).float()
    expected = copy.deepcopy(book)(x).values
    assert torch.equal(torch.compile(book, backend="aot_eager")(x).values, expected)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(codebooks, codes, size\), got \(3, 2\)"):
        Codebook(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Codebook(even_codes(1, 2), decay=1.0)
    with pytest.raises(ValueError, match="5 numbers along dimension -1, and 2 codebooks of vectors of 3 need 6"):
        Codebook(draw(2, 4, 3))(draw(4, 5))


# ---- two ranks
def followed(x: Tensor) -> Tensor:
    """Codes after three updates; the last of them is never chosen."""
    book = Codebook(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [99.0, 99.0]]]).double(), decay=0.5)
    for shift in range(3):
        book(x + shift)
    return book.codes


def worker(rank: int, file: str) -> None:
    codes = followed(draw(8, 2)[3:] if rank else draw(8, 2)[:3])  # ranks need not hold equally many
    torch.save(codes, f"{file}{rank}")


@pytest.mark.slow
def test_codes_of_two_ranks_follow_the_vectors_of_both(tmp_path: Path) -> None:
    on_two_ranks(worker, str(tmp_path / "codes"))
    expected = followed(draw(8, 2))
    assert expected[0, 2].tolist() == [99, 99]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"codes{rank}"), expected, rtol=1e-6, atol=0)
