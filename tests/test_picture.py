"""Pictures: what is encoded is what a reader decodes."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.picture import LINE, Pixels, film, grid, path, png


def random_pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decoded(encoded: bytes) -> Image.Image:
    picture = Image.open(BytesIO(encoded))
    picture.load()
    return picture


@pytest.mark.parametrize("scale", [1, 2, 3, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (8, 8), (67, 130)])
def test_a_reader_finds_the_enlarged_pixels(height: int, width: int, channels: int, scale: int) -> None:
    pixels = random_pixels(height, width, channels)
    picture = decoded(png(pixels, scale))
    assert picture.mode == ("L" if channels == 1 else "RGB")
    found = np.asarray(picture).reshape(height * scale, width * scale, channels)
    assert np.array_equal(found, pixels.repeat(scale, 0).repeat(scale, 1))


def test_pixels_need_not_lie_in_one_piece() -> None:
    pixels = random_pixels(6, 8, 3)[::2, ::-1]
    assert np.array_equal(np.asarray(decoded(png(pixels))), pixels)


def test_text_chunks_are_read_back() -> None:
    text = {"Software": "PFGM++ Serve", "seeds": "[1, 2]", "labels": "[]"}
    assert decoded(png(random_pixels(2, 2, 1), 1, text)).info == text


def test_a_flat_picture_stays_small_however_large_it_is_drawn() -> None:
    pixels = random_pixels(64, 64, 1)
    plain = BytesIO()
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)[..., 0]).save(plain, "PNG")
    assert len(png(pixels, 8)) <= 1.15 * plain.tell()


def test_a_grid_has_lines_between_and_around_its_images() -> None:
    images = random_pixels(3, 2, 2, 3)
    picture = grid(images, columns=2)
    assert picture.shape == (7, 7, 3)
    assert np.array_equal(picture[1:3, 4:6], images[1])
    assert np.array_equal(picture[4:6, 1:3], images[2])
    assert (picture[[0, 3, 6]] == LINE).all()
    assert (picture[:, [0, 3, 6]] == LINE).all()
    assert (picture[4:6, 4:6] == LINE).all()


def test_a_path_has_a_row_for_every_image_that_ends_with_it() -> None:
    images, trajectory = random_pixels(3, 4, 4, 1), random_pixels(3, 5, 4, 4, 1)
    picture = path(images, trajectory)
    assert picture.shape == (3 * 5 + 1, 6 * 5 + 1, 1)
    assert np.array_equal(picture[6:10, 26:30], images[1])
    assert np.array_equal(picture[6:10, 11:15], trajectory[1, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_shows_every_step_and_then_the_images(channels: int) -> None:
    images, trajectory = random_pixels(4, 4, 4, channels), random_pixels(4, 5, 4, 4, channels)
    with Image.open(BytesIO(film(images, trajectory, 2, scale=3))) as gif:
        assert (getattr(gif, "n_frames", 1), gif.size, gif.info["loop"]) == (6, (33, 33), 0)
        gif.seek(5)
        last = np.asarray(gif.convert("RGB")).astype(int)
    wanted = grid(images, 2).repeat(3, 0).repeat(3, 1).astype(int)
    # A GIF has 256 colours: all the greys there are, and near enough for the others.
    assert np.abs(last - wanted).mean() < (0.5 if channels == 1 else 10)
