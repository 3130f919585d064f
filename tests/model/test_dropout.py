from __future__ import annotations

import copy

import pytest
import torch

from weightclass.model.dropout import HashDropout


def dropped(key: int, slots: torch.Tensor, p: float = 0.3, features: int = 50) -> torch.Tensor:
    layer = HashDropout(p, features)
    layer.place(key, slots)
    return layer(torch.ones(len(slots), features))


def test_drops_a_share_and_keeps_the_mean():
    output = dropped(1, torch.arange(2000))
    torch.testing.assert_close(output.unique(), torch.tensor([0, 1 / 0.7]))
    assert abs((output == 0).float().mean() - 0.3) < 0.005
    assert (output == 0).float().mean(0).sub(0.3).abs().max() < 0.05  # every feature alike


def test_mask_is_a_function_of_key_and_slot():
    whole = dropped(7, torch.arange(16))
    assert torch.equal(torch.cat([dropped(7, torch.arange(8)), dropped(7, torch.arange(8, 16))]), whole)
    assert not torch.equal(dropped(8, torch.arange(16)), whole)


def test_masks_of_as_many_images_share_their_memory():
    layer, seen = HashDropout(0.5, 16), []
    for key, count in enumerate((6, 4, 6, 4)):
        layer.place(key, torch.arange(count))
        assert layer.mask is not None and layer.mask.shape == (count, 16)
        seen.append((layer.mask.data_ptr(), layer.mask.clone()))
    assert seen[0][0] == seen[2][0] and seen[1][0] == seen[3][0]
    assert not torch.equal(seen[0][1], seen[2][1])


def test_backward_uses_the_same_mask():
    layer = HashDropout(0.5, 8)
    layer.place(3, torch.arange(4))
    x = torch.ones(4, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_training_without_a_place_is_refused():
    layer = HashDropout(0.5, 8)
    with pytest.raises(RuntimeError, match="place"):
        layer(torch.ones(4, 8))
    layer.place(0, torch.arange(4))
    with pytest.raises(RuntimeError, match="place"):
        layer(torch.ones(3, 8))


def test_evaluation_passes_through_and_nothing_is_saved():
    layer = HashDropout(0.5, 8).eval()
    x = torch.ones(4, 8)
    assert layer(x) is x
    layer.place(0, torch.arange(4))
    assert not layer.state_dict()
    assert torch.equal(copy.deepcopy(layer).train()(x), layer.train()(x))
