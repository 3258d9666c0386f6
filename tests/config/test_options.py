"""Options of the small commands."""

import pytest

from search.config import options as command

DEFAULTS = {"run": "latest", "out": "report.html"}


def test_options_are_defaults_and_what_was_typed():
    assert command.parse_options(["out=a=b.html"], DEFAULTS) == command.Options({"run": "latest", "out": "a=b.html"})


def test_a_word_alone_is_the_first_option():
    assert command.parse_options(["runs/a=b.json"], {"file": ""}, first="file")["file"] == "runs/a=b.json"
    assert command.parse_options(["schedule.json"], {"file": ""}, first="file")["file"] == "schedule.json"


def test_keys_of_the_search_are_overrides():
    options = command.parse_options(["model=dit", "prompts.held_out=a.txt", "run=x"], DEFAULTS, configurable=True)
    assert options.overrides == ["model=dit", "prompts.held_out=a.txt"]
    assert options["run"] == "x"


@pytest.mark.parametrize(
    ("arguments", "settings", "text"),
    [
        (["ouut=x"], {}, "'ouut=x' is not an option. Did you mean out. There are run=, out="),
        (["model=dit"], {}, "'model=dit' is not an option. There are run=, out="),
        (["modle=dit"], {"configurable": True}, "There are run=, out=, model=, prompts., compute."),
        (["--fast"], {"first": "run"}, "'--fast' is not an option"),
    ],
)
def test_what_is_no_option(arguments, settings, text, capsys):
    with pytest.raises(ValueError, match=text):
        command.parse_options(arguments, DEFAULTS, **settings)
    assert command.run_command(arguments, "", lambda options: None, DEFAULTS, **settings) == 2
    assert text.replace(".", "")[:20] in capsys.readouterr().err.replace(".", "")


def test_exit_codes(capsys):
    def stop(options):
        raise KeyboardInterrupt

    def broken(options):
        raise KeyError("a mistake of ours")

    assert command.run_command([], "", lambda options: None, DEFAULTS) == 0
    assert command.run_command([], "", lambda options: 1, DEFAULTS) == 1
    assert command.run_command(["--help"], "what it does", stop, DEFAULTS) == 0
    assert "what it does" in capsys.readouterr().out
    assert command.run_command([], "", stop, DEFAULTS) == 130
    with pytest.raises(KeyError, match="ours"):
        command.run_command([], "", broken, DEFAULTS)
