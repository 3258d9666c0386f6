"""Pictures of whatever a pipeline returns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import PipelineState

from search.models.pictures import drawn_latents, output_at, pictures_of

RAMP = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 119


def test_pictures_are_the_same_as_tensors_arrays_and_lists():
    array = RAMP.movedim(1, -1).numpy()
    for given in (RAMP, list(RAMP), array, list(array), RAMP.double()):
        assert torch.equal(pictures_of(given), RAMP)
    assert torch.equal(pictures_of(torch.cat([RAMP, RAMP[:, :1]], dim=1)), RAMP)  # with transparency
    assert torch.equal(pictures_of(RAMP[:, :1]), RAMP[:, :1].expand(-1, 3, -1, -1))  # grey
    assert pictures_of(3 * RAMP - 1).min() == 0 and pictures_of(3 * RAMP - 1).max() == 1


@pytest.mark.parametrize(("frames", "shown"), [(9, (0, 3, 5, 8)), (5, (0, 1, 3, 4)), (1, (0, 0, 0, 0))])
def test_a_video_is_a_strip_of_four_frames(frames, shown):
    video = torch.rand(2, frames, 3, 4, 5)
    strip = torch.cat([video[:, i] for i in shown], dim=-1)
    assert torch.equal(pictures_of(video), strip) and strip.shape == (2, 3, 4, 20)
    assert torch.equal(pictures_of(video.movedim(2, -1).numpy()), strip)


def test_a_sound_is_its_spectrogram():
    """A sine is one bright line at its frequency, also in the mean of two channels."""
    sound = torch.sin(torch.arange(4096) * 2 * torch.pi * 32 / 256)[None]
    for given in (sound, sound.expand(2, -1)[None]):
        found = pictures_of(given)
        assert found.shape[:3] == (1, 3, 129) and (found[0, 0, :, 5:-5].argmax(0) == 128 - 32).all()
        assert found.min() >= 0 and found.max() == 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([object()], "returns a list, which is no picture"),
        (torch.zeros(2, 7, 4, 4), r"returns a Tensor of shape \[2, 7, 4, 4\], which is no picture"),
        (torch.zeros(2, 16), r"returns a Tensor of shape \[2, 16\], which is no picture"),
    ],
)
def test_anything_else_is_no_picture(output, message):
    with pytest.raises(ValueError, match=message):
        pictures_of(output)


def test_other_tensors_are_drawn_where_that_is_wanted():
    for shape in ((2, 7, 4, 4), (2, 16), (2, 5, 3), (2, 3, 5, 4, 4)):
        field = torch.randn(shape)
        assert torch.equal(pictures_of(field, other_tensors=True), drawn_latents(field))
    assert torch.equal(pictures_of(RAMP, other_tensors=True), RAMP)


def test_the_output_is_the_first_thing_or_what_a_path_names():
    nested = {"samples": [{"depth": 1}, {"depth": 2}], "audio": 3}
    assert output_at((1, 2)) == output_at({"images": 1, "audio": 2}) == output_at(1) == 1
    assert output_at(nested, "samples.1.depth") == 2 and output_at((1, 2), "1") == 2
    state = PipelineState(values={"images": 1, "audio": 2})  # what a modular pipeline returns
    assert output_at(state, "audio") == output_at(SimpleNamespace(audio=2), "audio") == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("frame", r"model.output='frame': a dict has no part frame; it has images, frames; type model.output=<one"),
        ("frames.2", r"model.output='frames.2': a list has no part 2; it has 0, 1; type"),
        ("images.mean", "model.output='images.mean': a Tensor has no part mean; it has no parts"),
    ],
)
def test_a_path_to_nothing_names_what_there_is(path, message):
    with pytest.raises(ValueError, match=message):
        output_at({"images": RAMP, "frames": [1, 2]}, path)


def test_latents_are_drawn_as_grey_tones():
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = drawn_latents(latents)
    assert drawn.shape == (2, 3, 32, 32) and 0 <= drawn.min() < drawn.max() <= 1
    assert torch.allclose(drawn[:, 0].flatten(1), latents.flatten(1).sigmoid())
    assert drawn_latents(torch.zeros(1, 3)).shape == (1, 3, 16, 16)
    assert not np.allclose(drawn[0], drawn[1])
