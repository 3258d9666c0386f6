"""The files around the code: hosted CI, hooks, citation and changelog are well-formed and name what exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import search


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_hosted_ci_installs_extras_and_runs_scripts_that_exist(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    jobs = read_yaml(root / ".github" / "workflows" / "ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {".ci/check", ".ci/run", "mkdocs build --strict"} <= set(commands)
    for command in commands:
        for script in re.findall(r"\.ci/\w+", command):
            assert (root / script).is_file(), command
        for names in re.findall(r'"\.\[([\w,]+)\]"', command):
            assert set(names.split(",")) <= set(extras), command


def test_hooks_run_the_projects_own_checks(root: Path) -> None:
    (local,) = read_yaml(root / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"  # no download
    entries = [hook["entry"] for hook in local["hooks"]]
    assert any(entry.startswith(".ci/check") for entry in entries)


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_have_what_a_form_needs(root: Path, name: str) -> None:
    form = read_yaml(root / ".github" / "ISSUE_TEMPLATE" / name)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_citation_has_the_required_fields_and_no_second_version(root: Path) -> None:
    citation = read_yaml(root / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "version" not in citation  # search.__version__ is the only one
    assert citation["license"] == tomllib.loads((root / "pyproject.toml").read_text())["project"]["license"]


def test_the_changelog_has_this_version_with_a_date(root: Path) -> None:
    headings = re.findall(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    assert headings[1].startswith(f"[{search.__version__}] - ")
