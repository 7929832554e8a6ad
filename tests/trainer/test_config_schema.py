"""The JSON Schema takes the configurations of mmfuse, and none that is wrong in form."""

import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner
from wrong_configs import RIGHT, WRONG

from mmfuse.features import plugins
from mmfuse.trainer.cli import app
from mmfuse.trainer.config import load_run_config

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.toml"))
# two values that do not go together, or a number that JSON does not have
NOT_OF_FORM = {
    "infinity", "heads that do not divide the width", "an odd width",
    "a warm-up longer than the training", "balance of one modality",
    "a choice that excludes another",
}  # fmt: skip


@pytest.fixture(scope="module")
def schema():
    outcome = CliRunner().invoke(app, ["schema"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def test_the_file_beside_the_configurations_is_what_the_command_prints(schema):
    assert (CONFIGS / "schema.json").read_text() == json.dumps(schema, indent=2) + "\n"


def test_it_is_a_schema(schema):
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_names_it_and_fits_it(schema, name):
    text = (CONFIGS / name).read_text()
    assert text.startswith("#:schema ./schema.json\n")
    Draft202012Validator(schema).validate(tomllib.loads(text))


def test_the_whole_configuration_of_a_run_fits_it(schema):
    from mmfuse.trainer.run import to_toml

    for name in NAMES:
        document = tomllib.loads(to_toml(load_run_config(CONFIGS / name)))
        Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("case", WRONG)
def test_it_refuses_what_is_wrong_in_form(schema, case):
    right, instead, *_ = WRONG[case]
    document = tomllib.loads(RIGHT.replace(right, instead))
    assert Draft202012Validator(schema).is_valid(document) == (case in NOT_OF_FORM)


def test_every_key_has_a_description(schema):
    for name, section in {"": schema, **schema["$defs"]}.items():
        for key, value in section["properties"].items():
            assert "$ref" in value or value["description"], f"{name}.{key}"
        assert section["description"]


def test_installed_fusions_are_in_it_by_name(monkeypatch):
    point = EntryPoint("doubled", "package:Doubled", "mmfuse.fusions")
    points = {"mmfuse.fusions": [point]}
    monkeypatch.setattr(plugins, "entry_points", lambda group: points.get(group, []))
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    document = tomllib.loads(RIGHT)
    for kind, options, fits in (("doubled", {"times": 2}, True), ("tripled", {}, False)):
        document["model"]["fusion"] = {"type": kind, "options": options}
        assert Draft202012Validator(schema).is_valid(document) == fits


def test_the_page_on_configurations_names_no_key_that_is_not_there(schema):
    page = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (`(?:model|preprocessing)\..*?`) \|", page, re.M)
    assert len({key for key, _ in rows}) >= 12
    for key, places in rows:
        for place in places.split(", "):
            sections = [schema]
            for name in place.strip("`").split("."):
                sections = [
                    schema["$defs"][ref.rpartition("/")[2]]
                    for section in sections
                    for ref in re.findall(
                        r"#/\$defs/\w+", json.dumps(section["properties"].get(name, {}))
                    )
                ]
            assert any(key in section["properties"] for section in sections), (place, key)
