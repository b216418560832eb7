"""Search-space files: YAML, validated against what the network and the target have.

model: srgan
layers:                      # stage -> fnmatch patterns of module paths; left out, the model's own stages
  body: ["body.*", "fuse"]
roles:                       # for every stage that has the role; a scalar is fixed, a list is searched
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: minmax}
stages:                      # what differs, by stage and role
  body: {weight: {bits: [4, 8]}}
output: float                # what networks give on the target, and nothing else; left out, the target's
"""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from autoq.config.policy import ROLES, Role, TensorQuant
from autoq.config.space import FIELDS, Choices, SearchSpace, SpaceFacts
from autoq.errors import PolicyError, SpaceError, suggest, unknown

T = TypeVar("T")

FOLDERS = (Path(__file__).parents[1] / "search_spaces", Path(__file__).parents[2] / "search_spaces")
"""Folders of bundled spaces: in an installed package, in a source tree."""

DEFAULTS = {"quantizer": "minmax", "clipping": "minmax"}
"""Defaults of a role. Granularity and signedness default to the target's first."""

OR_NAMED = "type --space with the path of a YAML file or a name from `autoq space --list`"

STAGE_NAME = "[A-Za-z][A-Za-z0-9_]*"


def bundled_space(model: str) -> Path:
    """The space file shipped for a model, or the one for all models."""
    if found := _bundled(model) or _bundled("default"):
        return found
    raise SpaceError(f"no search space is bundled for '{model}'; write one and type --space FILE")


def _bundled(name: str | Path) -> Path | None:
    files = (folder / f"{name}.yaml" for folder in FOLDERS)
    return next((file for file in files if file.is_file()), None)


def named_spaces() -> dict[str, str]:
    """Bundled space files by name, with their purpose: the first comment."""
    files = [file for folder in FOLDERS for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: _purpose(file) for file in files}


def _purpose(file: Path) -> str:
    comments = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comments)


def _located(path: Path) -> Path:
    """The bundled file of a bare name, unless a file of that name exists here."""
    is_name = len(path.parts) == 1 and not path.suffix and not path.exists()
    return (_bundled(path) if is_name else None) or path


class _Loader(yaml.SafeLoader):
    """Safe YAML. A duplicate key is an error; PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_space(path: Path, facts: SpaceFacts) -> SearchSpace:
    """Read and validate a space file. Raises SpaceError naming the key, what was expected and what to type."""
    return parse_space(read_space(path, facts.model), facts, str(path))


def read_space(path: Path, model: str) -> Any:
    """A space file as YAML data, not validated yet; a bare name is a bundled one. Raises SpaceError where it cannot be read."""
    try:
        return yaml.load(_located(path).read_text(), _Loader)
    except OSError as error:
        raise SpaceError(f"cannot read '{path}': {error.strerror or error}; {OR_NAMED}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # tags raise anything
        raise SpaceError(f"{path}: not YAML ({_problem(error)}); type `autoq space {model}` for a file to start from") from error


def space_layers(data: Any, where: str) -> dict[str, tuple[str, ...]]:
    """stage -> patterns of a space's `layers`; empty without them. Raises SpaceError where they are malformed."""
    layers = data.get("layers") if isinstance(data, Mapping) else None
    if layers is None:
        return {}
    if not isinstance(layers, Mapping) or not layers:
        raise SpaceError(f"{where}: layers: found '{_shown(layers)}', expected stages with patterns, as body: [\"body.*\"]")
    found = {}
    for stage, patterns in layers.items():
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not re.fullmatch(STAGE_NAME, str(stage)):
            raise SpaceError(f"{where}: layers.{_shown(stage)}: expected a stage named with letters, digits and '_'")
        if not isinstance(patterns, list) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
            raise SpaceError(f"{where}: layers.{stage}: found '{_shown(patterns)}', expected module paths, as [\"body.*\"]")
        found[str(stage)] = tuple(patterns)
    return found


def stored_stages(data: Mapping[str, Any]) -> dict[str, tuple[Role, ...]]:
    """stage -> roles of a space that `SearchSpace.to_dict` wrote. Raises SpaceError if it is malformed."""
    stages = data.get("stages")
    if not isinstance(stages, Mapping) or not all(isinstance(roles, Mapping) for roles in stages.values()):
        raise SpaceError("space: stages: expected stages with roles; the study's file was changed, restore it")
    return {str(stage): tuple(role for role in ROLES if role in roles) for stage, roles in stages.items()}


def _problem(error: Exception) -> str:
    """A YAML error in one line, with the place."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def parse_space(data: Any, facts: SpaceFacts, where: str) -> SearchSpace:
    """Validate YAML data; `where` names it in errors."""
    _check_keys(data, ("model", "layers", "roles", "stages", "output"), where, "")
    if data.get("model", facts.model) != facts.model:
        raise SpaceError(
            f"{where}: model: this space is for '{_shown(data['model'])}', but the network is '{facts.model}'; give another --space"
        )
    roles = _section(data, "roles", ROLES, where, "")
    common = {role: _section(roles, role, FIELDS, where, "roles") for role in ROLES}
    overrides = _section(data, "stages", facts.stages, where, "", f"{facts.model} has no stage")
    choices: dict[str, dict[Role, Choices]] = {}
    for stage, present in facts.stages.items():
        own = _section(overrides, stage, present, where, "stages", f"stage '{stage}' of {facts.model} has no role")
        fields = {role: _section(own, role, FIELDS, where, f"stages.{stage}") for role in present}
        choices[stage] = {
            role: _choices({**DEFAULTS, **common[role], **fields[role]}, role, facts, f"{where}: {stage}.{role}")
            for role in present
        }
    output = data.get("output", facts.output)
    if output != facts.output:
        raise SpaceError(f"{where}: output: '{_shown(output)}': {facts.target} outputs {facts.output}; type output: {facts.output}")
    return SearchSpace(facts, choices, facts.output, space_layers(data, where))


def _section(
    data: Mapping[str, Any], key: str, known: Iterable[str], where: str, path: str, complaint: str = "unknown key"
) -> Mapping[str, Any]:
    """The mapping under a key; empty if the key is absent or has no value."""
    section: Mapping[str, Any] = {} if data.get(key) is None else data[key]
    _check_keys(section, known, where, f"{path}.{key}" if path else key, complaint)
    return section


def _check_keys(data: Any, known: Iterable[str], where: str, path: str, complaint: str = "unknown key") -> None:
    known = tuple(known)
    if not isinstance(data, Mapping):
        found = f"'{_shown(data)}'" if data is not None else "nothing"
        raise SpaceError(f"{where}: {path or 'file'}: found {found}, expected a mapping with {', '.join(known)}")
    for key in data:
        if key not in known:
            full = f"{path}.{key}" if path else str(key)
            raise SpaceError(f"{where}: {full}: {complaint} '{key}'{suggest(str(key), known)}; known: {', '.join(known)}")


def _choices(data: Mapping[str, Any], role: Role, facts: SpaceFacts, where: str) -> Choices:
    if "bits" not in data:
        raise SpaceError(f"{where}: no bits; give bits: [4, 8] or bits: 8")
    formats = facts.formats[role]
    data = {"granularity": formats.granularity[0], "signed": formats.signed[0], **data}
    lists = {field: value if isinstance(value := data[field], list) else [value] for field in FIELDS}
    for field, values in lists.items():
        if not values:
            raise SpaceError(f"{where}.{field}: empty list; give at least one value")
    for field, known in (("quantizer", tuple(facts.quantizers)), ("clipping", facts.clippings)):
        for name in lists[field]:
            if name not in known:
                raise SpaceError(f"{where}.{field}: {unknown(field, _shown(name), known)}")
    signed = _one(_had(lists["signed"], formats.signed, "signed", facts.target, where), "signed", where)
    for name in lists["quantizer"]:
        reason = facts.quantizers[name].unfit(role, signed)
        if reason:
            others = ", ".join(other for other, known in facts.quantizers.items() if not known.unfit(role, signed))
            raise SpaceError(f"{where}.quantizer: '{name}' {reason}; give some of {others}")
    for bits in lists["bits"]:
        _check_bits(bits, role, lists["quantizer"], facts, f"{where}.bits")
    for field, values in lists.items():
        for value in values:
            if values.count(value) > 1:
                raise SpaceError(f"{where}.{field}: '{value}' is listed twice; list it once")
    return Choices(
        _had(lists["bits"], formats.bits, "bits", facts.target, where),
        tuple(lists["quantizer"]),
        tuple(lists["clipping"]),
        _one(_had(lists["granularity"], formats.granularity, "granularity", facts.target, where), "granularity", where),
        signed,
    )


def _had(given: list[Any], expected: tuple[T, ...], field: str, target: str, where: str) -> tuple[T, ...]:
    """The given values that the target has, in the target's order. Raises SpaceError if there are none."""
    found = tuple(value for value in expected if any(value == each and type(value) is type(each) for each in given))
    if not found:
        names = [str(value).lower() for value in expected]
        raise SpaceError(
            f"{where}.{field}: {target} executes only {' or '.join(names)}, found"
            f" '{_shown(given if len(given) > 1 else given[0])}'; type {field}: {names[0]}"
        )
    return found


def _one(found: tuple[T, ...], field: str, where: str) -> T:
    """The only value. Raises SpaceError if several are left, because this is not searched."""
    if len(found) > 1:
        names = [str(value).lower() for value in found]
        raise SpaceError(f"{where}.{field}: {' and '.join(names)} are listed, expected only one; type {field}: {names[0]}")
    return found[0]


def _check_bits(bits: Any, role: Role, quantizers: list[str], facts: SpaceFacts, where: str) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise SpaceError(f"{where}: '{_shown(bits)}': expected whole numbers, 1 to 16, or 32 for float")
    try:
        TensorQuant(bits)
    except PolicyError as error:
        raise SpaceError(f"{where}: {error}") from error
    for name in quantizers:
        reason = facts.quantizers[name].no_width(bits, role, facts.integer_bits) if bits <= facts.integer_bits else ""
        if reason:
            raise SpaceError(f"{where}: {bits}: quantizer '{name}' {reason}")


def _shown(value: Any) -> str:
    """A value of the file as an error shows it, shortened if it is long or deep."""
    return value if isinstance(value, str) else reprlib.repr(value)
