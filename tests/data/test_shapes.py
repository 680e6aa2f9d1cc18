"""The embedded data set: reproducible, balanced, learnable, and not trivial."""

import pytest
import torch
from torch import nn

from n2n_cli.data import TrainLoader, load, shapes
from n2n_cli.models import build


def test_images_of_a_seed() -> None:
    images, labels = shapes.generate.__wrapped__(0, "train", 300)
    again, _ = shapes.generate.__wrapped__(0, "train", 300)
    assert images.shape == (300, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, again)
    assert torch.equal(shapes.generate.__wrapped__(0, "train", 30)[0], images[:30])
    for other in (shapes.generate(1, "train", 30)[0], shapes.generate(0, "val", 30)[0]):
        assert (other == images[:30]).float().mean() < 0.1


def test_classes_are_balanced_and_named() -> None:
    data = load("shapes", train_images=1600, val_images=160)
    assert data.num_classes == len(data.class_names) == len(set(data.class_names)) == 16
    assert data.class_names[5] == "striped square" and data.synthetic
    assert data.train.labels.bincount().tolist() == [100] * 16
    assert data.val.labels.bincount().tolist() == [10] * 16


def test_statistics_of_the_normalisation() -> None:
    data = load("shapes", train_images=1600)
    pixels = data.train.images.float() / 255
    assert (pixels.mean((0, 2, 3)) - torch.tensor(data.mean)).abs().max() < 0.02
    assert (pixels.std((0, 2, 3)) - torch.tensor(data.std)).abs().max() < 0.04


def test_difficulty_and_size() -> None:
    def roughness(images: torch.Tensor) -> float:
        return images.float().diff(dim=-1).abs().mean().item()

    clean, hard = (shapes.generate(0, "val", 160, 32, dial)[0] for dial in (0.0, 1.5))
    assert 2 * roughness(clean) < roughness(hard)
    big = shapes.generate(0, "val", 160, 64, 0.0)[0]
    small = nn.functional.interpolate(big.float(), size=32, mode="area")
    assert (small - clean.float()).abs().mean() < 4  # the same pictures, at twice the resolution


def test_a_picture_shows_its_class() -> None:
    """Clean images: the object's area by class, and only textured objects have a second colour."""
    images, labels = shapes.generate(3, "train", 400, 64, 0.0)
    border = torch.cat([images[:, :, :3].flatten(2), images[:, :, -3:].flatten(2)], dim=2).float()
    ground = border.median(dim=2).values[..., None, None]
    away = (images.float() - ground).abs().amax(1) > 50
    area = away.float().mean((1, 2))
    assert (area > 0.05).float().mean() > 0.97 and (area < 0.45).float().mean() > 0.97
    inside = [pixels.float()[:, mask].std(1).amax().item() for pixels, mask in zip(images, away, strict=True)]
    spread = torch.tensor(inside).nan_to_num(0)
    medians = [spread[labels % 4 == texture].median() for texture in range(4)]
    assert 3 * medians[0] < min(medians[1:])


def test_not_learnable_from_colour_histograms_or_linearly() -> None:
    """Negative control: a linear classifier of pixels is hardly better than chance (6 %)."""
    data = load("shapes", train_images=2000, val_images=800)
    x, y = data.train.images.flatten(1).float() / 255 - 0.5, data.train.labels
    head = x.T @ torch.linalg.solve(x @ x.T + 300 * torch.eye(len(x)), nn.functional.one_hot(y, 16).float())
    guess = (data.val.images.flatten(1).float() / 255 - 0.5) @ head
    assert (guess.argmax(1) == data.val.labels).float().mean() < 0.2


@pytest.mark.slow
def test_the_demos_network_learns_it() -> None:
    """Six epochs of 12,000 images, SGD with a cosine: well above chance, below 97 %."""
    data = load("shapes")
    model = build("inception_bn_tiny", data.num_classes, stem="small")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    loader = TrainLoader(data.train, batch_size=32, seed=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * loader.steps_per_epoch)
    for epoch in range(6):
        for images, labels in loader.batches(epoch):
            loss = nn.functional.cross_entropy(model((images.float() / 255 - 0.5) / 0.2), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        guess = model((data.val.images.float() / 255 - 0.5) / 0.2).argmax(1)
    assert 0.6 < (guess == data.val.labels).float().mean() < 0.97
