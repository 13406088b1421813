"""The checker of schemas beside python's jsonschema: whatever that one finds wrong, it must find, too."""
import copy
import warnings

from schemas import Schemas

# What a field may be instead.
OTHERS = {"a number": 7, "a text": "x y", "null": None, "a list": [1], "an object": {"zzz": 1}}


def places(value, at=()):
    """Where something is in an object."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from places(inner, (*at, key))


def spoiled(value):
    """The object with one thing in it another, gone, or too many: what was done, and what came of it."""
    for at in places(value):
        for what in [*OTHERS, "gone", "one more"]:
            changed = copy.deepcopy(value)
            parent = changed
            for key in at[:-1]:
                parent = parent[key]
            if what == "gone":
                del parent[at[-1]]
            elif what == "one more" and isinstance(parent[at[-1]], dict):
                parent[at[-1]]["zzz"] = 1
            elif what in OTHERS:
                parent[at[-1]] = OTHERS[what]
            yield f"{'.'.join(map(str, at))}: {what}", changed


def compare(definitions, name, value):
    """How many objects were looked at, those that jsonschema finds wrong, and what of that the checker passed."""
    import jsonschema

    warnings.simplefilter("ignore", DeprecationWarning)
    schemas = Schemas(definitions)
    reference = jsonschema.Draft202012Validator({"$ref": "#/$defs/" + name, "$defs": definitions})
    tried, wrong, passed = 0, 0, []
    for what, other in [("nothing", value), *spoiled(value)]:
        is_wrong = not reference.is_valid(other)
        tried, wrong = tried + 1, wrong + is_wrong
        if is_wrong and not schemas.check(name, other):
            passed.append(what)
    return {"tried": tried, "wrong": wrong, "passed": passed}
