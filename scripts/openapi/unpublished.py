"""What API servers say that is not in the OpenAPI they publish, written down here after the Go types that define it."""

META = "io.k8s.apimachinery.pkg.apis.meta.v1."


def ref(name):
    return {"$ref": "#/$defs/" + name}


def struct(fields, required=(), kind=None):
    """A strict schema; `kind`: group, version and kind of what stands alone."""
    schema = {"type": "object", "properties": dict(fields), "required": list(required), "additionalProperties": False}
    if kind:
        group, version, name = kind
        schema["properties"].update(apiVersion={"enum": [f"{group}/{version}"]}, kind={"enum": [name]})
        schema["x-kubernetes-group-version-kind"] = [{"group": group, "version": version, "kind": name}]
    return schema


def listed(kind, item, **more):
    fields = {"metadata": ref(META + "ListMeta"), "items": {"type": "array", "items": item}, **more}
    return struct(fields, ["items"], (kind[0], kind[1], kind[2]))


TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": ["array", "null"], "items": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": ref("io.k8s.apimachinery.pkg.api.resource.Quantity")}
KIND = struct({"group": TEXT, "version": TEXT, "kind": TEXT}, ["group", "version", "kind"])


def discovery(version):
    """k8s.io/api, apidiscovery/*/types.go."""
    sub = {"subresource": TEXT, "responseKind": KIND, "acceptedTypes": {"type": "array", "items": KIND}, "verbs": TEXTS}
    resource = {"resource": TEXT, "responseKind": KIND, "scope": {"enum": ["Cluster", "Namespaced"]}, "singularResource": TEXT, "verbs": TEXTS,
                "shortNames": TEXTS, "categories": TEXTS, "subresources": {"type": ["array", "null"], "items": struct(sub, ["subresource", "verbs"])}}
    resources = {"type": ["array", "null"], "items": struct(resource, ["resource", "scope", "singularResource", "verbs"])}
    one = {"version": TEXT, "resources": resources, "freshness": {"enum": ["Current", "Stale"]}}
    group = struct({"metadata": ref(META + "ObjectMeta"), "versions": {"type": "array", "items": struct(one, ["version"])}})
    return listed(("apidiscovery.k8s.io", version, "APIGroupDiscoveryList"), group)


def table():
    """k8s.io/apimachinery, pkg/apis/meta/v1/types.go."""
    column = struct({"name": TEXT, "type": {"enum": ["string", "integer", "number", "boolean", "date"]}, "format": TEXT, "description": TEXT,
                     "priority": NUMBER}, ["name", "type", "format", "description", "priority"])
    condition = struct({"type": TEXT, "status": TEXT, "reason": TEXT, "message": TEXT}, ["type", "status"])
    row = struct({"cells": {"type": "array"}, "conditions": {"type": ["array", "null"], "items": condition}, "object": {"type": ["object", "null"]}}, ["cells"])
    fields = {"metadata": ref(META + "ListMeta"), "columnDefinitions": {"type": ["array", "null"], "items": column}, "rows": {"type": ["array", "null"], "items": row}}
    return struct(fields, ["columnDefinitions", "rows"], ("meta.k8s.io", "v1", "Table"))


def metrics(kind, more):
    """k8s.io/metrics, pkg/apis/metrics/v1beta1/types.go."""
    fields = {"metadata": ref(META + "ObjectMeta"), "timestamp": ref(META + "Time"), "window": TEXT, **more}
    return struct(fields, ["timestamp", "window", *more], ("metrics.k8s.io", "v1beta1", kind))


METRICS = "io.k8s.metrics.pkg.apis.metrics.v1beta1."
DOCUMENT = struct({"serverRelativeURL": TEXT}, ["serverRelativeURL"])
DEFINITIONS = {
    "io.k8s.api.apidiscovery.v2.APIGroupDiscoveryList": discovery("v2"),
    "io.k8s.api.apidiscovery.v2beta1.APIGroupDiscoveryList": discovery("v2beta1"),
    META + "Table": table(),
    META + "PartialObjectMetadata": struct({"metadata": ref(META + "ObjectMeta")}, ["metadata"], ("meta.k8s.io", "v1", "PartialObjectMetadata")),
    METRICS + "NodeMetrics": metrics("NodeMetrics", {"usage": QUANTITIES}),
    METRICS + "PodMetrics": metrics("PodMetrics", {"containers": {"type": "array", "items": struct({"name": TEXT, "usage": QUANTITIES}, ["name", "usage"])}}),
    METRICS + "NodeMetricsList": listed(("metrics.k8s.io", "v1beta1", "NodeMetricsList"), ref(METRICS + "NodeMetrics")),
    METRICS + "PodMetricsList": listed(("metrics.k8s.io", "v1beta1", "PodMetricsList"), ref(METRICS + "PodMetrics")),
    # k8s.io/kube-openapi, pkg/handler3/handler.go.
    "io.k8s.kube-openapi.v3.Discovery": struct({"paths": {"type": "object", "additionalProperties": DOCUMENT}}, ["paths"]),
    # https://spec.openapis.org/oas/v2.0 and v3.0.0: what every document has.
    "io.k8s.kube-openapi.v2.Document": {"type": "object", "required": ["swagger", "info", "paths"]},
    "io.k8s.kube-openapi.v3.Document": {"type": "object", "required": ["openapi", "info", "paths"]},
}


def operation(answer, **query):
    produces = ["text/plain"] if answer == "str" else ["application/json"]
    return {"get": {"query": query, "consumes": [], "produces": produces, "body": None, "responses": {"200": answer}}}


OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
SELECT = {"labelSelector": "str", "fieldSelector": "str", "limit": "int", "continue": "str", "resourceVersion": "str"}
PATHS = {
    # Health: https://kubernetes.io/docs/reference/using-api/health-checks/
    **{path: operation("str", verbose="str", exclude="str") for path in ("/healthz", "/livez", "/readyz")},
    # The document that the rest of this is from.
    "/openapi/v2": {"get": {**operation("io.k8s.kube-openapi.v2.Document")["get"], "produces": ["application/json", OPENAPI_V2]}},
    "/openapi/v3": operation("io.k8s.kube-openapi.v3.Discovery"),
    "/openapi/v3/{path}": operation("io.k8s.kube-openapi.v3.Document", hash="str"),
    # The metrics API is one of another server, behind the same address.
    "/apis/metrics.k8s.io": operation("V1APIGroup"),
    "/apis/metrics.k8s.io/v1beta1": operation("V1APIResourceList"),
    "/apis/metrics.k8s.io/v1beta1/nodes": operation(METRICS + "NodeMetricsList", **SELECT),
    "/apis/metrics.k8s.io/v1beta1/pods": operation(METRICS + "PodMetricsList", **SELECT),
    "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods": operation(METRICS + "PodMetricsList", **SELECT),
    "/apis/metrics.k8s.io/v1beta1/nodes/{name}": operation(METRICS + "NodeMetrics"),
    "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{name}": operation(METRICS + "PodMetrics"),
}
# Parameters beside those of an operation: TableOptions of meta/v1; k8s.io/apiserver, pkg/endpoints/filters/request_deadline.go.
QUERY = {"includeObject": {"None", "Metadata", "Object"}, "timeout": None}
