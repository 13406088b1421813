"""Rules of the Kubernetes API that its OpenAPI has in words only. Each names its place in Kubernetes' source."""

# k8s.io/apimachinery, pkg/apis/meta/v1/types.go and pkg/api/errors/errors.go: a failure's reason and its code.
REASONS = {
    "AlreadyExists": 409, "BadRequest": 400, "Conflict": 409, "Expired": 410, "Forbidden": 403, "Gone": 410, "InternalError": 500, "Invalid": 422,
    "MethodNotAllowed": 405, "NotAcceptable": 406, "NotFound": 404, "RequestEntityTooLarge": 413, "ServerTimeout": 500, "ServiceUnavailable": 503,
    "StoreReadError": 500, "Timeout": 504, "TooManyRequests": 429, "Unauthorized": 401, "UnsupportedMediaType": 415,
}
CAUSES = {
    "FieldManagerConflict", "FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueNotFound", "FieldValueNotSupported",
    "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid", "InternalError", "ResourceVersionTooLarge",
    "UnexpectedServerResponse",
}
WORDS = {
    "dryRun": {"All"}, "fieldValidation": {"Ignore", "Strict", "Warn"}, "propagationPolicy": {"Background", "Foreground", "Orphan"},
    "resourceVersionMatch": {"Exact", "NotOlderThan"},
}
# pkg/apis/*/v1/conversion.go: the fields that a selector may name beside metadata.name and metadata.namespace.
SELECTABLE = {
    "certificatesigningrequests": {"spec.signerName"},
    "events": {"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
               "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"},
    "namespaces": {"status.phase"},
    "nodes": {"spec.unschedulable"},
    "pods": {"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase",
             "status.podIP", "status.podIPs", "status.nominatedNodeName"},
    "secrets": {"type"},
    "services": {"spec.clusterIP", "spec.type"},
}
OPERATIONS = {"add": {"value"}, "remove": set(), "replace": {"value"}, "move": {"from"}, "copy": {"from"}, "test": {"value"}}
# What cannot be replaced without the version that was read: AllowUnconditionalUpdate in pkg/registry.
CONDITIONAL = {"Lease", "RuntimeClass"}


def listing(exchange):
    """k8s.io/apimachinery, pkg/apis/meta/internalversion/validation/validation.go: options of lists and watches."""
    match, watch = exchange.parameter("resourceVersionMatch"), exchange.flag("watch")
    if exchange.parameter("sendInitialEvents") and not watch:
        yield "sendInitialEvents without watch"
    if exchange.parameter("sendInitialEvents") and match != "NotOlderThan":
        yield "sendInitialEvents without resourceVersionMatch=NotOlderThan"
    if exchange.flag("sendInitialEvents") and not exchange.flag("allowWatchBookmarks"):
        yield "sendInitialEvents without allowWatchBookmarks: the end of the initial events would not be seen"
    if watch and match and not exchange.parameter("sendInitialEvents"):
        yield "resourceVersionMatch on a watch without sendInitialEvents"
    if match and not watch and not exchange.parameter("resourceVersion"):
        yield "resourceVersionMatch without resourceVersion"
    if match and exchange.parameter("continue"):
        yield "resourceVersionMatch with continue"
    if exchange.parameter("continue") and exchange.parameter("resourceVersion") not in ("", "0"):
        yield "resourceVersion with continue"
    if match == "Exact" and exchange.parameter("resourceVersion") == "0":
        yield "resourceVersionMatch=Exact with resourceVersion=0"
    resource = exchange.path.rpartition("/")[2]
    for term in exchange.parameter("fieldSelector").split(","):
        name = term.partition("=")[0].rstrip("!")
        if name and name not in {"metadata.name", "metadata.namespace"} | SELECTABLE.get(resource, set()):
            yield f"no selector for the field {name} of {resource}"


def patch(exchange, media):
    """k8s.io/apimachinery, pkg/apis/meta/v1/validation/validation.go: options of patches."""
    apply = media.startswith("application/apply-patch")
    if apply and not exchange.parameter("fieldManager"):
        yield "server-side apply without fieldManager"
    if not apply and exchange.parameter("force"):
        yield "force is for server-side apply"


def operations(value):
    """RFC 6902."""
    if not isinstance(value, list):
        yield "a JSON patch is a list"
        return
    for n, one in enumerate(value):
        needed = OPERATIONS.get(one.get("op")) if isinstance(one, dict) else None
        if needed is None:
            yield f"[{n}]: no operation of a JSON patch"
        elif set(one) != {"op", "path"} | needed:
            yield f"[{n}]: {one['op']} has the fields {sorted(one)}"
        elif not all(one[at] == "" or str(one[at]).startswith("/") for at in ("path", "from") if at in one):
            yield f"[{n}]: no JSON pointer"


def written(verb, value, kind):
    """k8s.io/apiserver, pkg/registry/generic/registry/store.go."""
    version = (value.get("metadata") or {}).get("resourceVersion")
    if verb == "create" and version:
        yield "metadata.resourceVersion: set on an object to be created"
    if verb == "update" and not version and kind in CONDITIONAL:
        yield f"metadata.resourceVersion: must be specified for an update of a {kind}"
    if kind == "Event" and verb == "create":
        yield from event(value)


def event(value):
    """pkg/apis/core/validation/events.go."""
    about, namespace = value.get("involvedObject") or {}, (value.get("metadata") or {}).get("namespace")
    if about.get("namespace", "") != namespace and (about.get("namespace") or namespace != "default"):
        yield f"involvedObject.namespace: {about.get('namespace')!r} is not the event's, {namespace!r}"
    if value.get("eventTime"):
        for field in ("reportingComponent", "reportingInstance", "action", "reason"):
            if not value.get(field):
                yield f"{field}: must be set with eventTime"


def status(code, value):
    """The Status that tells of a failure."""
    if value.get("status") != "Failure":
        yield f"status: {value.get('status')!r} with code {code}"
    if value.get("code") != code:
        yield f"code: {value.get('code')} in the body, {code} in the answer"
    if REASONS.get(value.get("reason")) != code:
        yield f"reason: {value.get('reason')!r} does not go with {code}"
    if not value.get("message"):
        yield "message: missing"
    for cause in (value.get("details") or {}).get("causes") or []:
        if cause.get("reason") not in CAUSES:
            yield f"details.causes: {cause.get('reason')!r} is no cause"
