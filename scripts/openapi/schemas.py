"""Whether JSON is what a schema of Kubernetes' published OpenAPI says (the strict ones, of PyPI's kubernetes-validate)."""
import base64
import binascii
import re

# How a value is held against its schema.
FULL = "full"  # an object, as it is
MERGE = "merge"  # a merge patch (RFC 7386): a part of an object, lists are whole, null removes
STRATEGIC = "strategic"  # a strategic merge patch: lists that are merged have parts, too

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
# Keywords that are looked at, and those that say nothing about what is valid.
KNOWN = {"$ref", "additionalProperties", "enum", "format", "items", "oneOf", "properties", "required", "type",
         "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-patch-merge-key", "x-kubernetes-patch-strategy"}
SILENT = {"default", "description", "x-kubernetes-group-version-kind", "x-kubernetes-map-type", "x-kubernetes-unions"}
TYPES = {"array": list, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "string": str}
RANGES = {"int32": (-2**31, 2**31), "int64": (-2**63, 2**63), "uint64": (0, 2**64)}
DIRECTIVE = re.compile(r"\$(setElementOrder|deleteFromPrimitiveList)/(.+)")
# What an API server takes and gives: k8s.io/apimachinery, pkg/apis/meta/v1/{time,micro_time}.go, pkg/api/resource/quantity.go.
DATE = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}"
FORMS = {
    META + "Time": re.compile(DATE + r"(\.\d+)?(Z|[+-]\d{2}:\d{2})"),
    META + "MicroTime": re.compile(DATE + r"\.\d{6}(Z|[+-]\d{2}:\d{2})"),
    "io.k8s.apimachinery.pkg.api.resource.Quantity": re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?"),
}


def join(at, field):
    return f"{at}.{field}" if at else field


def is_a(value, kind):
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, TYPES[kind])


def is_base64(text):
    try:
        base64.b64decode(text, validate=True)
        return True
    except binascii.Error:
        return False


class Schemas:
    """Definitions by their names."""

    def __init__(self, definitions):
        self.definitions = definitions
        self.tops = {}
        for name, schema in definitions.items():
            kinds = schema.get("x-kubernetes-group-version-kind", [])
            # Options and Status are of every group.
            if len(kinds) == 1 or name.startswith(META):
                self.tops.update({((k["group"], k["version"]), k["kind"]): name for k in kinds})

    def of_kind(self, group_version, kind):
        """The definition of a kind of a group; None if Kubernetes has none."""
        return self.tops.get((group_version, kind))

    def of_client(self, name, group):
        """The definition that the client of published.py calls `name`, such as V1Pod, in a path of `group`."""
        special = {"VersionInfo": "io.k8s.apimachinery.pkg.version.Info"}.get(name)
        if special:
            return special
        prefix, version, kind = re.fullmatch(r"([A-Z][a-z]+)?V(\d+(?:(?:alpha|beta)\d+)?)(.+)", name).groups()
        ends = f".v{version}.{kind}"
        found = [full for full in self.definitions if full.endswith(ends)]
        for part in ([prefix.lower()] if prefix else []) + [group.split(".")[0] or "core"]:
            if len(found) > 1:
                found = [full for full in found if full.split(".")[-3] == part] or found
        if len(found) != 1:
            raise KeyError(f"{name}: {found}")
        return found[0]

    def check(self, name, value, mode=FULL, at=""):
        """What is wrong with a value, as `field: why`."""
        return list(self.walk({"$ref": "#/$defs/" + name}, value, mode, at))

    def walk(self, schema, value, mode, at):
        unknown = set(schema) - KNOWN - SILENT
        if unknown:
            raise KeyError(f"{at}: keywords of a schema that nobody looks at: {unknown}")
        if value is None and mode != FULL:
            return
        if "$ref" in schema:
            name = schema["$ref"].removeprefix("#/$defs/")
            yield from self.form(name, value, at)
            yield from self.walk(self.definitions[name], value, mode, at)
            return
        if "oneOf" in schema:
            if all(list(self.walk(one, value, mode, at)) for one in schema["oneOf"]):
                yield f"{at}: {value!r} is of none of the types that it may have"
            return
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if value is None:
            if (kinds and "null" not in kinds) or None not in schema.get("enum", [None]):
                yield f"{at}: null, but it is required"
            return
        if kinds and not any(is_a(value, kind) for kind in kinds if kind != "null"):
            yield f"{at}: {value!r} is no {' or '.join(kind for kind in kinds if kind != 'null')}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{at}: {value!r} is none of {schema['enum']}"
        yield from self.formatted(schema.get("format"), value, at)
        if isinstance(value, dict):
            yield from self.fields(schema, value, mode, at)
        elif isinstance(value, list):
            yield from self.items(schema, value, mode, at)

    def form(self, name, value, at):
        form = FORMS.get(name)
        if form and isinstance(value, str) and not form.fullmatch(value):
            yield f"{at}: {value!r} is no {name.rpartition('.')[2]}"

    def formatted(self, form, value, at):
        low, end = RANGES.get(form, (value, value))
        if form in RANGES and not low <= value < end:
            yield f"{at}: {value} is no {form}"
        if form == "byte" and not is_base64(value):
            yield f"{at}: no base64"

    def fields(self, schema, value, mode, at):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        if mode == STRATEGIC and "$patch" in value:
            if value["$patch"] not in ("replace", "merge", "delete"):
                yield f"{join(at, '$patch')}: {value['$patch']!r} is no directive"
        elif mode == FULL:
            for field in schema.get("required", []):
                if field not in value:
                    yield f"{join(at, field)}: missing"
        for field, inner in value.items():
            if field in known:
                yield from self.walk(known[field], inner, mode, join(at, field))
            elif mode == STRATEGIC and field.startswith("$"):
                yield from self.directive(known, field, inner, at)
            elif other is False:
                yield f"{join(at, field)}: unknown field"
            elif isinstance(other, dict):
                yield from self.walk(other, inner, mode, f"{at}[{field!r}]")

    def directive(self, known, field, value, at):
        """k8s.io/apimachinery, pkg/util/strategicpatch/patch.go."""
        if field == "$patch":
            return
        if field == "$retainKeys":
            if not isinstance(value, list) or set(value) - set(known):
                yield f"{join(at, field)}: no list of fields that are known here"
            return
        match = DIRECTIVE.fullmatch(field)
        schema = known.get(match[2]) if match else None
        if schema is None or "merge" not in schema.get("x-kubernetes-patch-strategy", ""):
            yield f"{join(at, field)}: no directive for a list that is merged"
            return
        key = schema.get("x-kubernetes-patch-merge-key")
        if key is None or match[1] == "deleteFromPrimitiveList":
            yield from self.walk(schema, value, MERGE, join(at, field))
        elif not all(isinstance(item, dict) and set(item) == {key} for item in value):
            yield f"{join(at, field)}: its items have other fields than the key {key}"

    def items(self, schema, value, mode, at):
        merged = mode == STRATEGIC and "merge" in schema.get("x-kubernetes-patch-strategy", "")
        key = schema.get("x-kubernetes-patch-merge-key")
        for n, item in enumerate(value):
            inner = f"{at}[{n}]"
            if merged and key and isinstance(item, dict) and key not in item and item.get("$patch") != "replace":
                yield f"{inner}: without {key}, by which it is merged"
            yield from self.walk(schema.get("items", {}), item, STRATEGIC if merged else FULL, inner)
        if not merged:
            yield from self.unlike(schema, value, at)

    def unlike(self, schema, value, at):
        """Items that are told apart by nothing."""
        how, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", [])
        if how == "map":
            marks = [tuple(repr(item.get(key)) for key in keys) for item in value if isinstance(item, dict)]
        elif how == "set":
            marks = [repr(item) for item in value]
        else:
            return
        for mark in {mark for mark in marks if marks.count(mark) > 1}:
            yield f"{at}: more than one item {mark}"
