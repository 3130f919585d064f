"""Logits: the same for every batch size, however little memory, in evaluation mode, the model left as it was found."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from tests.reference.pictures import Lazy
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.evaluation.predict import logits


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a head; it notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, 5))
        self.seen: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            (len(x), x.is_contiguous(memory_format=torch.channels_last), torch.is_inference_mode_enabled())
        )
        return self.head(self.norm(self.conv(x)).relu())


def half(batch: Tensor) -> Tensor:
    return batch.float() / 128 - 1


@pytest.fixture
def net() -> Net:
    net = Net()
    for i, parameter in enumerate(net.parameters()):
        values = torch.arange(parameter.numel(), dtype=torch.float32) * (0.7 + i)
        parameter.data = torch.sin(values).reshape(parameter.shape) * 0.3
    return net


IMAGES = (torch.arange(37 * 3 * 64) * 7919 % 256).to(torch.uint8).reshape(37, 3, 8, 8)


@pytest.mark.parametrize("batch_size", [1, 7, 36, 37, 1000])
def test_equals_one_image_at_a_time(net: Net, batch_size: int) -> None:
    found = logits(net, IMAGES, half, batch_size)
    net.eval()
    plain = torch.cat([net(half(image[None])).detach() for image in IMAGES])
    assert found.dtype == torch.float32 and found.shape == (37, 5)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_batches_are_small_channels_last_and_without_autograd(net: Net) -> None:
    logits(net, IMAGES.repeat(10, 1, 1, 1), half)
    sizes = [size for size, _, _ in net.seen]
    assert sizes == [predict.BATCH_SIZE, 370 - predict.BATCH_SIZE]
    assert all(last and inference for _, last, inference in net.seen)


def test_only_the_mode_of_a_model_changes(net: Net) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits(net, IMAGES, half)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_progress_counts_images(net: Net) -> None:
    calls: list[tuple[int, int]] = []
    logits(net, IMAGES, half, 16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 37), (32, 37), (37, 37)]


def test_result_may_enter_autograd(net: Net) -> None:
    found = logits(net, IMAGES, half)
    assert not found.requires_grad
    temperature = torch.ones((), requires_grad=True)
    (found / temperature).logsumexp(1).sum().backward()
    assert temperature.grad is not None and temperature.grad.isfinite()


def test_no_images_no_logits(net: Net) -> None:
    assert logits(net, IMAGES[:0], half).shape == (0, 5)


def test_lazy_images_are_read_batch_by_batch(net: Net) -> None:
    images = Lazy(IMAGES)
    assert torch.equal(logits(net, images, half, 16), logits(net, IMAGES, half, 16))
    assert images.reads == [16, 16, 5]


def test_batches_go_to_the_model(net: Net) -> None:
    """Images on the CPU, a model elsewhere: the meta device stands in for a GPU."""
    places: list[torch.device] = []

    def normalise(batch: Tensor) -> Tensor:
        places.append(batch.device)
        return half(batch)

    assert logits(net.to("meta"), IMAGES, normalise, 20).device.type == "meta"
    assert places == [torch.device("meta")] * 2


# --- too little memory -------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """A network on a device with room for `room` images; `error` is what it then raises."""

    def __init__(self, net: Net, room: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.net, self.room, self.error = net, room, error
        self.refused: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not any(held() is not None for held in self.refused), "the batch that did not fit is still in memory"
        if len(x) > self.room:
            self.refused.append(weakref.ref(x))
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.net(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(("room", "sizes"), [(250, [37]), (18, [18, 18, 1]), (5, [4] * 9 + [1]), (1, [1] * 37)])
def test_too_little_memory_halves_the_batch(net: Net, room: int, sizes: list[int], error: type[RuntimeError]) -> None:
    narrow, done = Narrow(net, room, error), list[int]()
    found = logits(narrow, IMAGES, half, progress=lambda count, total: done.append(count))
    assert [size for size, _, _ in net.seen] == sizes
    assert done == torch.tensor(sizes).cumsum(0).tolist()
    torch.testing.assert_close(found, logits(net, IMAGES, half), rtol=1e-5, atol=1e-5)


def test_memory_that_takes_no_image_is_told(net: Net) -> None:
    with pytest.raises(UserError, match="no memory to judge even one image"):
        logits(Narrow(net, 0), IMAGES, half)


def test_other_errors_go_on_their_way(net: Net) -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        logits(net, IMAGES[:, :2], half)
