"""Lines of prompts to arguments of calls: texts, names of classes, JSON."""

import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

from search.models.prompts import prompt_arguments, text_of

PARAMETERS = ("prompt", "image", "mask_image", "strength", "ip_adapter_image_embeds")
LABELS = {"apple": 0, "boat": 1, "sailing boat": 1, "cat face": 2}
DIT = SimpleNamespace(labels=LABELS)


def arguments(*prompts):
    return prompt_arguments(None, PARAMETERS, prompts)


def test_lines_of_text_are_prompts():
    assert arguments("red apple") == {"prompt": "red apple"}
    assert arguments("red apple", "") == {"prompt": ["red apple", ""]}


def test_lines_of_json_are_arguments_and_pictures_are_read(tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png")
    line = json.dumps({"prompt": "a fox", "image": str(tmp_path / "a.png"), "strength": 0.5})
    found = arguments(line)
    assert found["prompt"] == "a fox" and found["strength"] == 0.5 and found["image"].size == (4, 2)
    assert [each.size for each in arguments(line, line)["image"]] == [(4, 2)] * 2
    assert arguments('{"ip_adapter_image_embeds": "x.pt"}') == {"ip_adapter_image_embeds": "x.pt"}
    assert text_of(line) == "a fox" and text_of("a fox") == "a fox" and text_of('{"image": "a.png"}') == ""


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (['{"prompt": '], r"the prompt '{\"prompt\": ' begins with { and is not JSON: Expecting value"),
        (['{"promt": "a"}'], "gives promt, which the pipeline does not take; did you mean prompt?"),
        (['{"xyzzy": 1}'], "gives xyzzy, which the pipeline does not take; it takes prompt, image, mask_image, "),
        (['{"image": "nowhere.png"}'], "names a picture that cannot be read: .*nowhere.png"),
        (["a", '{"prompt": "b", "strength": 1}'], "give different arguments; give all the same .*: prompts.batch=1"),
    ],
)
def test_lines_that_cannot_be_are_refused_with_what_can(prompts, message):
    with pytest.raises(ValueError, match=message.replace("{", re.escape("{"))):
        arguments(*prompts)


def classes(*names, pipe=DIT):
    return prompt_arguments(pipe, ("class_labels", "guidance_scale"), names)["class_labels"]


def test_names_of_a_class_are_its_number_and_no_name_is_no_class():
    assert classes("boat", "sailing boat", "") == [1, 1, 1000] and classes("cat face") == [2]
    assert classes("", pipe=SimpleNamespace(labels={})) == [1000]


@pytest.mark.parametrize(
    ("name", "pipe", "message"),
    [
        ("aple", DIT, "'aple' is not one of the 4 class names of this SimpleNamespace; did you mean apple"),
        ("xyz", DIT, "'xyz' is not one .*; for example apple, boat, sailing boat, cat face"),
        ("apple", SimpleNamespace(labels={}), "has no class names; its model_index.json needs id2label"),
    ],
)
def test_an_unknown_class_is_refused_with_those_spelled_alike(name, pipe, message):
    with pytest.raises(ValueError, match=message):
        classes(name, pipe=pipe)
