"""Thresholds must lie on the scale of the metric that is named, and be meant for it.

A threshold that another metric has by default is taken for one that was left as it was: a form sends all defaults.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medgen.parameters import suggestion
from models.quality.scales import Kind, Scale, scales, suggested

KINDS: tuple[Kind, ...] = get_args(Kind)
Rule = Literal["single", "joint"]
PARAMETERS: Mapping[Kind, Mapping[str, Rule]] = {
    kind: {f"{kind}_threshold": "single", f"mediocre_{kind}": "joint"} for kind in KINDS
}
"""Kind of metric → parameter with a threshold on its scale → which of its suggested thresholds that is."""


def conflicts(parameters: BaseModel) -> Iterator[tuple[str, str]]:
    """(parameter, what is wrong with it) for metrics that are unknown and thresholds that are not theirs."""
    for kind in KINDS:
        metric = getattr(parameters, f"{kind}_model")
        known = scales(kind)
        if metric not in known:
            yield f"{kind}_model", f"there is no metric {metric!r}{suggestion(metric, known)}"
            continue
        for name, rule in PARAMETERS[kind].items():
            value, default = getattr(parameters, name), type(parameters).model_fields[name].default
            wrong = _wrong(kind, metric, rule, value, default, type(parameters).model_fields[f"{kind}_model"].default)
            if wrong:
                yield name, wrong


def _wrong(kind: Kind, metric: str, rule: Rule, value: float, default: float, default_metric: str) -> str:
    """What is wrong with a threshold; "" when nothing is."""
    scale = scales(kind)[metric]
    if not scale.holds(value):
        return f"{value:g} is not on the scale of {metric}, which runs from {_advice(kind, metric, rule, scale)}"
    if _left_over(kind, metric, rule, default, default_metric) and value == default:
        meant = f"{value:g} is meant for {default_metric}, not for {metric}"
        return f"{meant}, which runs from {_advice(kind, metric, rule, scale)}"
    return ""


def _left_over(kind: Kind, metric: str, rule: Rule, default: float, default_metric: str) -> bool:
    """Whether the default belongs to another metric and says something else than that metric's own threshold."""
    return metric != default_metric and default != getattr(suggested(kind, metric), rule)


def _advice(kind: Kind, metric: str, rule: Rule, scale: Scale) -> str:
    value = getattr(suggested(kind, metric), rule)
    return f"{scale}: set {value:g}" + (", which drops nothing, or what you measured" if value == scale.worst else "")


def conflict_schemas(fields: Mapping[str, FieldInfo]) -> list[dict[str, Any]]:
    """`conflicts` as JSON schemas of the parameters as a whole. Parameters that are not given have their default."""
    schemas: list[dict[str, Any]] = []
    for kind in KINDS:
        model = f"{kind}_model"
        known, default_metric = scales(kind), fields[model].default
        schemas.append({"properties": {model: {"enum": sorted(known)}}})
        alike: dict[str, list[str]] = {}  # metrics by what holds for their thresholds, to keep the schema small
        for metric in sorted(known, key=lambda name: (name != default_metric, name)):
            alike.setdefault(json.dumps(_thresholds_schema(kind, metric, fields)), []).append(metric)
        for then, metrics in alike.items():
            named: dict[str, Any] = {"properties": {model: {"enum": metrics}}}  # or left out
            if default_metric not in metrics:
                # Without the word "required", which Prefect removes where it checks a deployment's own parameters.
                named = {"not": {"properties": {model: {"not": {"enum": metrics}}}}}
            schemas.append({"if": named, "then": json.loads(then)})
    return schemas


def _thresholds_schema(kind: Kind, metric: str, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """What holds for the thresholds of the metric."""
    scale, default_metric = scales(kind)[metric], fields[f"{kind}_model"].default
    properties: dict[str, Any] = {}
    required = []
    for name, rule in PARAMETERS[kind].items():
        default = fields[name].default
        wrong: list[dict[str, Any]] = [{"exclusiveMaximum": scale.least}, {"exclusiveMinimum": scale.greatest}]
        if _left_over(kind, metric, rule, default, default_metric):
            wrong.append({"const": default})
            required.append(name)
        elif not scale.holds(default):
            required.append(name)
        # Where the value is refused, these words are part of the message.
        told = f"this {kind}_model runs from {_advice(kind, metric, rule, scale)}"
        properties[name] = {"not": {"anyOf": wrong, "$comment": told}}
    return {"properties": properties, "required": required}
