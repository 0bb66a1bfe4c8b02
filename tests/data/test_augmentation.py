"""Crops and flips against loops, zooms and rotations against what they must do to known images."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llfc_core.data import Augmentation, AugmentationParameters


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    # From 1: black comes from outside of the image only.
    return torch.randint(1, 256, (n, channels, height, width), generator=generator(seed)).byte()


def parameters(n: int, **changes: object) -> AugmentationParameters:
    """Of an augmentation without padding: nothing is done but the ``changes``."""
    zeros = torch.zeros(n, dtype=torch.float64)
    still = AugmentationParameters(
        top=torch.zeros(n, dtype=torch.int64),
        left=torch.zeros(n, dtype=torch.int64),
        flip=torch.zeros(n, dtype=torch.bool),
        zoom=zeros + 1,
        angle=zeros,
    )
    filled = {k: torch.full((n,), v, dtype=torch.float64) for k, v in changes.items()}
    return dataclasses.replace(still, **filled)


def crop_flip_one_by_one(images: Tensor, drawn: AugmentationParameters, padding: int) -> Tensor:
    n, channels, height, width = images.shape
    out = torch.empty_like(images)
    for i in range(n):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding).byte()
        padded[:, padding : padding + height, padding : padding + width] = images[i]
        top, left = int(drawn.top[i]), int(drawn.left[i])
        window = padded[:, top : top + height, left : left + width]
        out[i] = window.flip(-1) if drawn.flip[i] else window
    return out


@settings(deadline=None, max_examples=60)
@given(
    padding=st.integers(0, 5),
    flip=st.booleans(),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 2**31),
)
def test_crops_and_flips_are_pad_slice_flip(padding, flip, shape, seed):
    augmentation = Augmentation(crop_padding=padding, flip=flip)
    images = random_images(*shape, seed=seed)
    drawn = augmentation.draw(len(images), generator(seed))
    before = images.clone()
    out = augmentation(images, drawn)
    assert out.dtype == torch.uint8
    assert torch.equal(out, crop_flip_one_by_one(images, drawn, padding))
    assert torch.equal(images, before)


def test_all_crops_are_drawn_equally_often_and_flips_half_the_time():
    drawn = Augmentation(crop_padding=2, flip=True).draw(50_000, generator())
    for offsets in (drawn.top, drawn.left):
        counts = offsets.bincount()
        assert len(counts) == 5
        assert ((counts - 10_000).abs() < 400).all()  # 4.5 standard deviations
    places = (5 * drawn.top + drawn.left).bincount(minlength=25)
    assert ((places - 2_000).abs() < 200).all()
    assert abs(int(drawn.flip.sum()) - 25_000) < 500


def test_zooms_and_angles_span_their_ranges_evenly():
    drawn = Augmentation(zoom=(0.8, 1.2), rotation=30).draw(50_000, generator())
    for values, lowest, highest in ((drawn.zoom, 0.8, 1.2), (drawn.angle, -30, 30)):
        assert lowest <= values.min() <= values.max() <= highest
        counts = values.histc(10, lowest, highest)
        assert ((counts - 5_000).abs() < 300).all()
    assert abs(torch.corrcoef(torch.stack([drawn.zoom, drawn.angle]))[0, 1]) < 0.02


FULL = Augmentation(crop_padding=4, flip=True, zoom=(0.8, 1.2), rotation=30.0)


def equal(a: AugmentationParameters, b: AugmentationParameters) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a._tensors(), b._tensors(), strict=True))


def test_a_seed_means_the_same_parameters():
    first, again = FULL.draw(100, generator(3)), FULL.draw(100, generator(3))
    assert equal(first, again)
    assert not equal(first, FULL.draw(100, generator(4)))
    used = generator(3)
    FULL.draw(100, used)
    assert not equal(first, FULL.draw(100, used))


def test_the_seeds_numbers_are_pinned():
    """Batches of recipes kept in a store stay what they were."""
    drawn = FULL.draw(4, generator(0))
    assert drawn.top.tolist() == [8, 6, 4, 8]
    assert drawn.left.tolist() == [5, 7, 1, 3]
    assert drawn.flip.tolist() == [False, True, True, True]
    assert drawn.zoom.tolist() == pytest.approx(
        [0.942106703, 1.048762099, 0.99273936, 0.9763202], abs=1e-8
    )
    assert drawn.angle.tolist() == pytest.approx(
        [-5.563106, -17.673684, 9.902291, 17.092434], abs=1e-5
    )


def test_switching_one_part_off_leaves_the_others_draws():
    reference = FULL.draw(50, generator())
    for name, off in (("crop_padding", 0), ("flip", False), ("zoom", None), ("rotation", 0.0)):
        drawn = dataclasses.replace(FULL, **{name: off}).draw(50, generator())
        parts = {"crop_padding": ("top", "left"), "rotation": ("angle",)}.get(name, (name,))
        for field in dataclasses.fields(drawn):
            same = torch.equal(getattr(drawn, field.name), getattr(reference, field.name))
            assert same == (field.name not in parts), (name, field.name)


def test_the_generators_state_afterwards_depends_on_n_only():
    states = []
    for augmentation in (FULL, Augmentation(), Augmentation(flip=True)):
        used = generator()
        augmentation.draw(10, used)
        states.append(used.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_parameters_of_some_images():
    images = random_images(20, 3, 8, 8)
    drawn = FULL.draw(20, generator())
    whole = FULL(images, drawn)
    assert len(drawn) == 20
    assert len(drawn[5:9]) == 4
    assert torch.equal(FULL(images[5:9], drawn[5:9]), whole[5:9])
    index = torch.tensor([7, 0, 19])
    assert torch.equal(FULL(images[index], drawn[index]), whole[index])


def test_parameters_move():
    moved = FULL.draw(3, generator()).to("meta")
    assert {t.device.type for t in moved._tensors()} == {"meta"}


@pytest.mark.parametrize(
    ("augmentation", "identity"),
    [
        (Augmentation(), True),
        (Augmentation(zoom=(1.0, 1.0)), True),
        (Augmentation(crop_padding=1), False),
        (Augmentation(flip=True), False),
        (Augmentation(zoom=(1.0, 1.1)), False),
        (Augmentation(rotation=1.0), False),
    ],
)
def test_identity(augmentation, identity):
    assert augmentation.identity is identity
    images = random_images(64, 1, 5, 5)
    out = augmentation(images, augmentation.draw(64, generator()))
    assert (out.dtype == torch.uint8 and torch.equal(out, images)) is identity


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 32), (6, 2, 7, 12)])
def test_zoom_one_and_rotation_zero_change_nothing(shape):
    images = random_images(*shape)
    out = Augmentation(zoom=(0.5, 2.0), rotation=10)(images, parameters(6))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, images.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("quarters", [-1, 1, 2])
@pytest.mark.parametrize("size", [7, 32])
def test_quarter_turns_are_counter_clockwise(quarters, size):
    images = random_images(4, 3, size, size)
    out = Augmentation(rotation=180)(images, parameters(4, angle=90 * quarters))
    expected = images.rot90(quarters, dims=(-2, -1)).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-3)


def test_half_a_turn_of_an_oblong_image():
    images = random_images(4, 1, 5, 9)
    out = Augmentation(rotation=180)(images, parameters(4, angle=180))
    torch.testing.assert_close(out, images.flip(-1, -2).float(), rtol=0, atol=5e-3)


def test_a_quarter_turn_of_an_oblong_image_keeps_pixels_square():
    """Rows become columns about the centre; what was outside of the image is black."""
    images = random_images(2, 1, 3, 7)
    out = Augmentation(rotation=180)(images, parameters(2, angle=90))
    expected = torch.zeros(2, 1, 3, 7)
    expected[..., 2:5] = images[..., 2:5].rot90(1, dims=(-2, -1)).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-3)


def test_magnification_by_three():
    """Every pixel of the middle third becomes a 3 × 3 patch with itself at the centre."""
    images = random_images(3, 2, 9, 9)
    out = Augmentation(zoom=(3.0, 3.0))(images, parameters(3, zoom=3))
    torch.testing.assert_close(
        out[..., 1::3, 1::3], images[..., 3:6, 3:6].float(), rtol=0, atol=5e-3
    )
    between = (images[..., 3, 3].float() * 2 + images[..., 3, 4].float()) / 3
    torch.testing.assert_close(out[..., 1, 2], between, rtol=0, atol=5e-3)


def test_reduction_by_three_leaves_a_black_frame():
    images = random_images(3, 2, 9, 9)
    out = Augmentation(zoom=(0.1, 1.0))(images, parameters(3, zoom=1 / 3))
    torch.testing.assert_close(
        out[..., 3:6, 3:6], images[..., 1::3, 1::3].float(), rtol=0, atol=5e-3
    )
    frame = out.clone()
    frame[..., 3:6, 3:6] = 0
    assert frame.abs().max() < 1e-3


def bilinear(image: Tensor, x: float, y: float) -> float:
    """One channel at column x and row y, black outside."""
    height, width = image.shape
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += float(image[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


@settings(deadline=None, max_examples=15)
@given(
    zoom=st.floats(0.5, 2),
    angle=st.floats(-180, 180),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_zoom_and_rotation_are_the_stated_equation(zoom, angle, size):
    height, width = size
    images = random_images(1, 1, height, width)
    out = Augmentation(zoom=(0.5, 2), rotation=180)(images, parameters(1, zoom=zoom, angle=angle))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for row in range(height):
        for column in range(width):
            x, y = column - (width - 1) / 2, row - (height - 1) / 2
            from_x = (x * cos - y * sin) / zoom + (width - 1) / 2
            from_y = (x * sin + y * cos) / zoom + (height - 1) / 2
            expected = bilinear(images[0, 0], from_x, from_y)
            assert float(out[0, 0, row, column]) == pytest.approx(expected, abs=0.01)


def test_crop_and_flip_come_before_zoom_and_rotation():
    images = random_images(10, 3, 8, 8)
    drawn = FULL.draw(10, generator())
    cropped = Augmentation(crop_padding=4, flip=True)(images, drawn)
    assert torch.equal(FULL(images, drawn), Augmentation(rotation=180)(cropped, drawn))


def test_values_stay_in_range():
    images = torch.full((200, 1, 9, 9), 255, dtype=torch.uint8)
    out = FULL(images, FULL.draw(200, generator()))
    assert out.min() == 0
    assert out.max() == 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree():
    images = random_images(500, 3, 32, 32)
    drawn = FULL.draw(500, generator())
    exact = Augmentation(crop_padding=4, flip=True)
    moved, moved_drawn = images.to("cuda"), drawn.to("cuda")
    torch.cuda.set_sync_debug_mode("error")  # neither may wait for the device
    try:
        integers, floats = exact(moved, moved_drawn), FULL(moved, moved_drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(integers.cpu(), exact(images, drawn))
    torch.testing.assert_close(floats.cpu(), FULL(images, drawn), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("images", "n"),
    [
        (torch.zeros(3, 1, 4, 4), 3),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 1),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), 2),
    ],
)
def test_other_images_are_refused(images, n):
    augmentation = Augmentation(flip=True)
    with pytest.raises(ValueError, match="uint8"):
        augmentation(images, augmentation.draw(n, generator()))


@pytest.mark.parametrize(
    "arguments",
    [
        {"crop_padding": -1},
        {"zoom": (0.0, 1.0)},
        {"zoom": (1.2, 0.8)},
        {"zoom": (0.8, math.inf)},
        {"zoom": (math.nan, 1.0)},
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"rotation": math.nan},
    ],
)
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Augmentation(**arguments)


def test_it_can_be_hashed_and_made_from_json():
    """Recipes hold one, and are kept as JSON, which has lists for tuples."""
    again = Augmentation(**{**dataclasses.asdict(FULL), "zoom": [0.8, 1.2]})
    assert again == FULL
    assert hash(again) == hash(FULL)


def test_equal_ones_are_the_same_json():
    """Keys are made from it: 30 and 30.0, 1 and True are equal."""
    a = Augmentation(crop_padding=4, flip=True, zoom=(1.0, 2.0), rotation=30.0)
    b = Augmentation(crop_padding=4, flip=1, zoom=(1, 2), rotation=30)  # type: ignore[arg-type]
    assert a == b
    assert json.dumps(dataclasses.asdict(a)) == json.dumps(dataclasses.asdict(b))
