"""Whether what discovery says there is, is there in Kubernetes."""

METHODS = {"create": "post", "delete": "delete", "deletecollection": "delete", "get": "get", "list": "get", "patch": "patch", "update": "put", "watch": "get"}
ON_ONE = {"delete", "get", "patch", "update"}


def offered(paths, value):
    """An APIResourceList."""
    version = value.get("groupVersion", "")
    at = f"/apis/{version}" if "/" in version else f"/api/{version}"
    for one in value.get("resources") or []:
        plural, _, sub = one["name"].partition("/")
        yield from offers(paths, at, plural, sub, one["namespaced"], one["kind"], one["verbs"])


def discovered(paths, value):
    """An APIGroupDiscoveryList."""
    for group in value.get("items") or []:
        name = group["metadata"].get("name") or ""
        for version in group.get("versions") or []:
            at = f"/apis/{name}/{version['version']}" if name else f"/api/{version['version']}"
            for one in version.get("resources") or []:
                for sub, of in [("", one), *((sub["subresource"], sub) for sub in one.get("subresources") or [])]:
                    kind = (of.get("responseKind") or {}).get("kind")
                    yield from offers(paths, at, one["resource"], sub, one["scope"] == "Namespaced", kind, of["verbs"])


def offers(paths, at, plural, sub, namespaced, kind, verbs):
    collection = f"{at}/namespaces/{{namespace}}/{plural}" if namespaced else f"{at}/{plural}"
    named = f"{plural}/{sub}" if sub else plural
    for verb in verbs:
        path = f"{collection}/{{name}}" if sub or verb in ON_ONE else collection
        template = paths.get(f"{path}/{sub}" if sub else path)
        if template is None or METHODS.get(verb) not in template.operations:
            yield f"discovery offers {verb} of {named}, which Kubernetes has not at {at}"
    about = None if sub else paths.get(collection)
    answer = about and next(iter(about.operations.values()))["responses"].get("200")
    if answer and not answer.removesuffix("List").endswith(kind):
        yield f"discovery has the kind {kind} for {plural}, Kubernetes {answer}"
